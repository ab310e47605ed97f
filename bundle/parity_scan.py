"""Finding packets by their magic, in a file of which nothing else need be readable."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tersor.bundle.decoding import Readable
from tersor.bundle.digests import checksum
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.parity import PACKET_HEADER_BYTES, ParityGeometry
from tersor.bundle.parity_packet import (
    PACKET_MAGIC,
    PacketHeader,
    hashes_of,
    is_whole,
    pack_header,
    unpack_header,
)

_WINDOW_BYTES = 1 << 20
# A file may be full of what begins as a packet. Real ones take more than a page each, so that more
# of the others are a forgery, which may cost no more than reading the file a few times.
_PAGE_BYTES = 4096
_SPARE_FAILURES = 1 << 10
_MAX_GEOMETRIES = 1 << 10
# A file that can be repaired holds at least as many bytes, in data and parity together, as its data
# has; and parity is at most half of it from our writer, or some packets. What declares far more
# than the file has would only make tables large.
_MAX_DECLARED_RATIO = 4
_SPARE_DECLARED_BYTES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundParity:
    """The geometry that most packets agree on, and the packets that stand elsewhere."""

    geometry: ParityGeometry
    moved: dict[int, int]  # place in the section -> offset in the file


def plausible(geometry: ParityGeometry, file_bytes: int) -> bool:
    """Whether a file of that length can hold enough of what a geometry declares."""
    most = _MAX_DECLARED_RATIO * file_bytes + _SPARE_DECLARED_BYTES
    return geometry.section_bytes <= most and geometry.protected_bytes <= most


def scan(source: Readable, file_bytes: int) -> FoundParity | None:
    """Looks for whole packets in every byte of a file.

    Packets where they say they belong count before all others: a bundle may carry another one,
    with packets of its own, as a file.

    Args:
        source: the file.
        file_bytes: its length.

    Returns:
        None if there is not one whole packet.
    """
    return _Scan(source, file_bytes).run()


class _Scan:
    def __init__(self, source: Readable, file_bytes: int) -> None:
        self._source = source
        self._file_bytes = file_bytes
        self._failures_left = file_bytes // _PAGE_BYTES + _SPARE_FAILURES
        self._placed: Counter[ParityGeometry] = Counter()
        self._moved: dict[ParityGeometry, dict[int, int]] = {}

    def run(self) -> FoundParity | None:
        at = 0
        while at + PACKET_HEADER_BYTES <= self._file_bytes and self._failures_left > 0:
            window = np.empty(min(_WINDOW_BYTES, self._file_bytes - at), np.uint8)
            self._source.read_into(at, window)
            at += self._search(at, window.tobytes())
        known = set(self._placed) | set(self._moved)
        if not known:
            return None
        # All else equal, the smallest: any order will do, but always the same.
        geometry = max(known, key=lambda g: (*self._support(g), -g.offset, -g.block_bytes))
        return FoundParity(geometry=geometry, moved=self._moved.get(geometry, {}))

    def _support(self, geometry: ParityGeometry) -> tuple[int, int]:
        return self._placed[geometry], len(self._moved.get(geometry, ()))

    def _search(self, start: int, window: bytes) -> int:
        """Takes the packets that begin in a window; returns how far the search has come in it."""
        at = 0
        while self._failures_left > 0:
            at = window.find(PACKET_MAGIC, at)
            if at < 0 or at + PACKET_HEADER_BYTES > len(window):
                break
            header = unpack_header(window[at : at + PACKET_HEADER_BYTES])
            if header is not None and self._take(header, start + at):
                at += header.geometry.packet_bytes  # what is inside of it is no packet
            else:
                self._failures_left -= 1
                at += 1
        # The header of the next window's first packet may have begun in this one.
        searched = len(window) - PACKET_HEADER_BYTES + 1
        return max(searched, at)

    def _take(self, header: PacketHeader, offset: int) -> bool:
        """Counts a packet at `offset` if it is whole."""
        geometry = header.geometry
        if offset + geometry.packet_bytes > self._file_bytes or not self._may_count(geometry):
            return False
        packet = np.empty(geometry.packet_bytes, np.uint8)
        self._source.read_into(offset, packet)
        if not is_whole(packet.data):
            return False
        if offset == geometry.packet_offset(header.place):
            self._placed[geometry] += 1
        else:
            self._moved.setdefault(geometry, {}).setdefault(header.place, offset)
        return True

    def _may_count(self, geometry: ParityGeometry) -> bool:
        if geometry in self._placed or geometry in self._moved:
            return True
        room = len(self._placed) + len(self._moved) < _MAX_GEOMETRIES
        return room and plausible(geometry, self._file_bytes)


def read_digest(
    source: Readable, geometry: ParityGeometry, place: int, offset: int, packet: ByteArray
) -> int:
    """Reads the packet of a place at `offset`, and tells stripes' hashes apart.

    Args:
        source: the file.
        geometry: of its parity.
        place: of the packet in the section.
        offset: where to read it.
        packet: [packet_bytes]; filled.

    Returns:
        A number above 0 that packets with the same hashes share; 0 if it is not that packet, whole.
    """
    source.read_into(offset, packet)
    header = pack_header(geometry, place)
    if packet[: len(header)].tobytes() != header or not is_whole(packet.data):
        return 0
    return checksum(hashes_of(packet.data, geometry)) or 1
