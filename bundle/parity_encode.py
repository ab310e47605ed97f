"""Computing parity: packets for the stripes of a file whose other bytes are in their places.

The code is Reed-Solomon over GF(2^8), byte by byte: byte c of the blocks of a stripe are the values
of a polynomial of degree below k at k points, and byte c of its parity blocks are further values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tersor.bundle.atomic_file import AtomicFile
from tersor.bundle.decoding import Readable
from tersor.bundle.digests import checksum
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.parity import HASH_BYTES, ParityGeometry
from tersor.bundle.parity_packet import pack_header, pack_packet
from tersor.bundle.parity_source import read_blocks

# Neighbouring stripes are read and encoded together, for reads and slices long enough to be fast;
# a stripe of the largest blocks alone is 16 MiB.
_GROUP_BYTES = 1 << 24


class Encoder:
    """Packets of whole stripes; for any number of threads."""

    def __init__(self, geometry: ParityGeometry) -> None:
        import zfec

        self.geometry = geometry
        self._fec = zfec.Encoder(
            geometry.data_blocks, geometry.data_blocks + geometry.parity_blocks
        )

    def write_packets(
        self, file: AtomicFile, stripe: int, rows: ByteArray, indices: Sequence[int]
    ) -> None:
        """Computes packets and writes them in their places.

        Args:
            file: its section is reserved.
            stripe: the first of one or more that follow each other.
            rows: [data_blocks, bytes]; row i holds block i of each of these stripes.
            indices: which of their packets.
        """
        geometry, size = self.geometry, self.geometry.block_bytes
        columns = [slice(at, at + size) for at in range(0, rows.shape[1], size)]
        hashes = [_hashes(rows[:, column]) for column in columns]
        numbers = tuple(geometry.data_blocks + index for index in indices)
        encoded: list[bytes] = self._fec.encode(tuple(rows), numbers)
        for index, blocks in zip(indices, encoded, strict=True):
            place = index * geometry.stripes + stripe
            packets = (
                pack_packet(
                    pack_header(geometry, place + at), hashes[at], memoryview(blocks)[column]
                )
                for at, column in enumerate(columns)
            )
            file.write_at(geometry.packet_offset(place), b"".join(packets))


def _hashes(rows: ByteArray) -> bytes:
    return b"".join(checksum(row.data).to_bytes(HASH_BYTES, "little") for row in rows)


def encode_section(
    file: AtomicFile,
    geometry: ParityGeometry,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes all packets into a file whose section is reserved and whose other bytes are written.

    Reads each protected byte once. Each thread holds at most one stripe or 16 MiB, whichever is
    more, and its parity; the bytes do not depend on how many there are.

    Args:
        file: to read from and to write to.
        geometry: of its parity.
        threads: that encode together.
        progress: called with the bytes that parity was computed of, and the bytes in all.

    Raises:
        BundleWriteError: the file cannot be written.
    """
    stripes = geometry.stripes
    width = _GROUP_BYTES // (geometry.data_blocks * geometry.block_bytes)
    width = max(1, min(width, -(-stripes // threads)))
    encoder = Encoder(geometry)
    with file.opened() as source:

        def encode(first: int) -> int:
            group = range(first, min(first + width, stripes))
            encode_stripes(source, file, encoder, group)
            return group.stop

        for done in in_order(encode, range(0, stripes, width), threads):
            if progress is not None:
                total = geometry.protected_bytes
                progress(total * done // stripes, total)


def encode_stripes(source: Readable, file: AtomicFile, encoder: Encoder, stripes: range) -> None:
    """Reads consecutive stripes and writes all of their packets."""
    geometry = encoder.geometry
    rows = np.empty((geometry.data_blocks, len(stripes) * geometry.block_bytes), np.uint8)
    for number, row in enumerate(rows):
        first = number * geometry.stripes + stripes.start
        read_blocks(source, geometry, first, len(stripes), row)
    encoder.write_packets(file, stripes.start, rows, range(geometry.parity_blocks))


def in_order(work: Callable[[int], int], items: range, threads: int) -> Iterator[int]:
    """The results of `work` in the order of `items`, computed by several threads."""
    if threads < 2 or len(items) < 2:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, "tersor-parity")
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
