"""What of a file's blocks and packets is damaged, stripe by stripe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tersor.bundle.container import FOOTER_BYTES, Footer
from tersor.bundle.decoding import Readable
from tersor.bundle.digests import checksum
from tersor.bundle.errors import BundleError
from tersor.bundle.manifest import Manifest
from tersor.bundle.parity import HASH_BYTES, PACKET_HEADER_BYTES, ParityGeometry
from tersor.bundle.parity_scan import read_digest, scan
from tersor.bundle.parity_source import DamagedFile, read_blocks
from tersor.bundle.sources import BundlePlace, ByteSource, open_sequential

ScalarT = TypeVar("ScalarT", bound=np.generic)
Progress = Callable[[int, int], None]

_WINDOW_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class LostStripe:
    """A stripe in which more blocks are damaged than packets are left to restore them by."""

    stripe: int
    damaged_blocks: int
    whole_packets: int

    @property
    def excess(self) -> int:
        """How many blocks too many are damaged."""
        return self.damaged_blocks - self.whole_packets


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """The state of a file's parity, and what it says of the file."""

    section_bytes: int
    block_bytes: int
    data_blocks: int  # of a stripe
    parity_blocks: int  # of a stripe
    stripes: int
    blocks: int
    packets: int
    damaged_blocks: int
    damaged_packets: int
    damaged_stripes: int
    lost_stripes: tuple[LostStripe, ...]
    # Stripes without one whole packet: only the checksums in the manifest tell whether their data
    # is damaged, and parity helps only if it is not.
    bare_stripes: int
    repairable: bool | None  # None: depends on the data of the bare stripes

    @property
    def damaged(self) -> bool:
        """Whether any block or packet is."""
        return self.damaged_blocks > 0 or self.damaged_packets > 0


class Survey:
    """Every packet and block of a file, looked at once.

    Attributes:
        geometry: of the parity.
        packets: for each place in the section, where in the file its packet is; -1 if damaged.
        hashes: for each data block, what its hash must be; of no meaning in bare stripes.
        bare: for each stripe, whether it has no whole packet.
        damaged: for each data block, whether its hash is another; never in bare stripes.
    """

    def __init__(
        self,
        source: Readable,
        file_bytes: int,
        geometry: ParityGeometry,
        moved: dict[int, int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Reads the whole file.

        Args:
            source: the file; what cannot be read must come as zeros.
            file_bytes: its length, which need not be what the geometry says.
            geometry: of its parity.
            moved: packets that stand elsewhere in the file, by their place in the section.
            progress: called with the bytes looked at so far and the bytes in all.
        """
        self.geometry = geometry
        self._source = source
        self._progress = progress
        self.packets = np.full(geometry.packets, -1, np.int64)
        self.hashes = np.zeros(geometry.blocks, np.uint64)
        self.bare = np.ones(geometry.stripes, np.bool_)
        self.damaged = np.zeros(geometry.blocks, np.bool_)
        self._agree(self._read_packets(file_bytes, moved or {}))
        self._read_hashes()
        self._check_blocks()

    def blocks_of(self, stripe: int) -> range:
        """The data blocks of a stripe, in order."""
        return range(stripe, self.geometry.blocks, self.geometry.stripes)

    def places_of(self, stripe: int) -> range:
        """The places of a stripe's packets, in order."""
        return range(stripe, self.geometry.packets, self.geometry.stripes)

    def damaged_stripes(self) -> NDArray[np.int64]:
        """Numbers of the stripes in which a block is damaged, or a packet not in its place."""
        stripes = self._damaged_blocks() > 0
        stripes |= self._grid(self.misplaced()).any(axis=0)
        return np.flatnonzero(stripes)

    def misplaced(self) -> NDArray[np.bool_]:
        """For each place in the section, whether its packet is damaged or elsewhere."""
        places = np.arange(self.geometry.packets)
        wrong: NDArray[np.bool_] = self.packets != self.geometry.packet_offset(0) + (
            places * self.geometry.packet_bytes
        )
        return wrong

    def lost_stripes(self) -> tuple[LostStripe, ...]:
        """The stripes that cannot be restored."""
        blocks, packets = self._damaged_blocks(), self._whole_packets()
        return tuple(
            LostStripe(
                stripe=int(stripe),
                damaged_blocks=int(blocks[stripe]),
                whole_packets=int(packets[stripe]),
            )
            for stripe in np.flatnonzero(blocks > packets)
        )

    def report(self) -> ParityReport:
        """The numbers of it."""
        geometry = self.geometry
        lost = self.lost_stripes()
        bare = int(np.count_nonzero(self.bare))
        return ParityReport(
            section_bytes=geometry.section_bytes,
            block_bytes=geometry.block_bytes,
            data_blocks=geometry.data_blocks,
            parity_blocks=geometry.parity_blocks,
            stripes=geometry.stripes,
            blocks=geometry.blocks,
            packets=geometry.packets,
            damaged_blocks=int(np.count_nonzero(self.damaged)),
            damaged_packets=int(np.count_nonzero(self.misplaced())),
            damaged_stripes=len(self.damaged_stripes()),
            lost_stripes=lost,
            bare_stripes=bare,
            repairable=False if lost else None if bare else True,
        )

    def _grid(self, of_places: NDArray[ScalarT]) -> NDArray[ScalarT]:
        """One row for each parity index, one column for each stripe."""
        return of_places.reshape(self.geometry.parity_blocks, self.geometry.stripes)

    def _damaged_blocks(self) -> NDArray[np.int64]:
        stripes = np.flatnonzero(self.damaged) % self.geometry.stripes
        return np.bincount(stripes, minlength=self.geometry.stripes)

    def _whole_packets(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = (self._grid(self.packets) >= 0).sum(axis=0, dtype=np.int64)
        return counts

    def _read_packets(self, file_bytes: int, moved: dict[int, int]) -> NDArray[np.uint64]:
        """Finds the whole packets; returns a number for each that tells its hashes from others."""
        geometry = self.geometry
        digests = np.zeros(geometry.packets, np.uint64)
        packet = np.empty(geometry.packet_bytes, np.uint8)
        there = max(0, file_bytes - geometry.offset) // geometry.packet_bytes
        places = range(min(geometry.packets, there))
        in_place = ((place, geometry.packet_offset(place)) for place in places)
        for place, offset in chain(in_place, moved.items()):
            if digests[place] == 0:
                digests[place] = read_digest(self._source, geometry, place, offset, packet)
                self.packets[place] = offset if digests[place] else -1
        return digests

    def _agree(self, digests: NDArray[np.uint64]) -> None:
        """Drops packets that contradict most others of their stripe: they are forged."""
        grid = self._grid(digests)
        agreed = grid.max(axis=0)
        for stripe in np.flatnonzero(((grid != 0) & (grid != agreed)).any(axis=0)):
            votes = Counter(int(digest) for digest in grid[:, stripe] if digest)
            agreed[stripe] = max(votes, key=lambda digest: (votes[digest], digest))
        self.packets[(grid != agreed).reshape(-1)] = -1

    def _read_hashes(self) -> None:
        geometry = self.geometry
        table = np.empty(HASH_BYTES * geometry.data_blocks, np.uint8)
        for stripe in range(geometry.stripes):
            offsets = self.packets[stripe :: geometry.stripes]
            whole = np.flatnonzero(offsets >= 0)
            if len(whole):
                self._source.read_into(int(offsets[whole[0]]) + PACKET_HEADER_BYTES, table)
                self.bare[stripe] = False
                mine = self.hashes[stripe :: geometry.stripes]
                mine[:] = table.view("<u8")[: len(mine)]

    def _check_blocks(self) -> None:
        geometry, size = self.geometry, self.geometry.block_bytes
        window = np.empty(_WINDOW_BYTES // size * size, np.uint8)
        view = window.data
        for first in range(0, geometry.blocks, _WINDOW_BYTES // size):
            numbers = range(first, min(first + _WINDOW_BYTES // size, geometry.blocks))
            read_blocks(self._source, geometry, first, len(numbers), window[: len(numbers) * size])
            found = np.array(
                [checksum(view[at * size : (at + 1) * size]) for at in range(len(numbers))],
                np.uint64,
            )
            here = slice(numbers.start, numbers.stop)
            stripes = np.arange(numbers.start, numbers.stop) % geometry.stripes
            self.damaged[here] = (found != self.hashes[here]) & ~self.bare[stripes]
            if self._progress is not None:
                self._progress(numbers.stop * size, geometry.blocks * size)


def survey(
    file: ByteSource, manifest: Manifest | None = None, progress: Progress | None = None
) -> Survey | None:
    """Surveys a file by its manifest, and where that does not lead far enough by a scan.

    Args:
        file: inside `file.using()`.
        manifest: of the file, if it can be read; without parity there is nothing to survey.
        progress: called with the bytes looked at so far and the bytes in all.

    Returns:
        None if the file has no parity that could be found.
    """
    source = DamagedFile(file)
    if manifest is not None:
        if manifest.parity is None:
            return None
        geometry = geometry_of(file, manifest)
        if geometry is not None:
            found = Survey(source, file.size, geometry, progress=progress)
            if not found.lost_stripes() and not found.bare.any():
                return found
            other = scan(source, file.size)
            if other is None or other.geometry != geometry or not other.moved:
                return found
            return Survey(source, file.size, geometry, other.moved, progress)
    best = scan(source, file.size)
    if best is None:
        return None
    return Survey(source, file.size, best.geometry, best.moved, progress)


def geometry_of(file: ByteSource, manifest: Manifest) -> ParityGeometry | None:
    """The geometry of a file with that manifest; None if its section has another length."""
    assert manifest.parity is not None
    tail = np.empty(FOOTER_BYTES, np.uint8)
    file.read_into(file.size - FOOTER_BYTES, tail)
    manifest_offset = Footer.unpack(tail.tobytes(), file.size).manifest_offset
    geometry = ParityGeometry.of(manifest.parity, file.size - manifest_offset)
    return geometry if geometry.manifest_offset == manifest_offset else None


def find_parity(place: BundlePlace) -> ParityReport | None:
    """What parity says of a file that cannot be opened as a bundle; None if it finds none."""
    try:
        file = open_sequential(place)
        try:
            with file.using():
                found = survey(file)
        finally:
            file.close()
    except BundleError:
        return None
    return None if found is None else found.report()
