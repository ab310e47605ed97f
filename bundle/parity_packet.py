"""A packet of the parity section: says what it belongs to, and is whole or worth nothing.

 0  magic  89 54 53 50 41 52 0d 0a        48  offset of the section   u64
 8  packet version  u32                   56  offset of the manifest  u64
12  bytes of a block        u32           64  stripe        u64
16  data blocks a stripe    u32  (k)      72  parity index  u32
20  parity blocks a stripe  u32  (m)      76  reserved, zero  u32
24  stripes         u64                   80  xxh3-64 of each of the stripe's k data blocks, u64
32  data blocks     u64                       the parity block
40  bytes of the file  u64                    xxh3-64 of all of the packet before  u64
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tersor.bundle.digests import checksum
from tersor.bundle.errors import BundleFormatError
from tersor.bundle.parity import (
    HASH_BYTES,
    PACKET_CHECKSUM_BYTES,
    PACKET_HEADER_BYTES,
    ParityGeometry,
)

# As in the header: a byte above 127 and a line end, which a transfer in text mode breaks.
PACKET_MAGIC = b"\x89TSPAR\r\n"
PACKET_VERSION = 1

_HEADER = struct.Struct("<8sIIIIQQQQQQII")
assert _HEADER.size == PACKET_HEADER_BYTES


class PacketHeader(NamedTuple):
    """What a packet says of itself."""

    geometry: ParityGeometry
    place: int  # in the section


def pack_header(geometry: ParityGeometry, place: int) -> bytes:
    """The first bytes of the packet of a place in the section."""
    index, stripe = divmod(place, geometry.stripes)
    return _HEADER.pack(
        PACKET_MAGIC,
        PACKET_VERSION,
        geometry.block_bytes,
        geometry.data_blocks,
        geometry.parity_blocks,
        geometry.stripes,
        geometry.blocks,
        geometry.file_bytes,
        geometry.offset,
        geometry.manifest_offset,
        stripe,
        index,
        0,
    )


def unpack_header(data: bytes | memoryview) -> PacketHeader | None:
    """What the first bytes of a packet say; None if no valid packet begins so."""
    (magic, version, block_bytes, data_blocks, parity_blocks, stripes, blocks, file_bytes, offset,
     manifest_offset, stripe, index, reserved) = _HEADER.unpack(data)  # fmt: skip
    if magic != PACKET_MAGIC or version != PACKET_VERSION or reserved != 0:
        return None
    geometry = ParityGeometry(
        block_bytes=block_bytes,
        data_blocks=data_blocks,
        parity_blocks=parity_blocks,
        offset=offset,
        manifest_offset=manifest_offset,
        file_bytes=file_bytes,
    )
    try:
        geometry.check()
    except BundleFormatError:
        return None
    if (blocks, stripes) != (geometry.blocks, geometry.stripes):
        return None
    if stripe >= stripes or index >= parity_blocks:
        return None
    return PacketHeader(geometry, index * stripes + stripe)


def pack_packet(header: bytes, hashes: bytes, block: bytes | memoryview) -> bytes:
    """A whole packet."""
    body = b"".join((header, hashes, block))
    return body + checksum(body).to_bytes(PACKET_CHECKSUM_BYTES, "little")


def is_whole(packet: memoryview) -> bool:
    """Whether a packet's checksum matches."""
    stored = int.from_bytes(packet[-PACKET_CHECKSUM_BYTES:], "little")
    return checksum(packet[:-PACKET_CHECKSUM_BYTES]) == stored


def hashes_of(packet: memoryview, geometry: ParityGeometry) -> memoryview:
    """The part of a packet that holds its stripe's hashes."""
    return packet[PACKET_HEADER_BYTES : PACKET_HEADER_BYTES + HASH_BYTES * geometry.data_blocks]


def block_of(packet: memoryview, geometry: ParityGeometry) -> memoryview:
    """The part of a packet that is its parity block."""
    start = PACKET_HEADER_BYTES + HASH_BYTES * geometry.data_blocks
    return packet[start : start + geometry.block_bytes]
