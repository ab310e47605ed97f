"""Reading protected bytes as blocks, also from a file that is cut off or partly unreadable."""

from __future__ import annotations

from tersor.bundle.decoding import Readable
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleReadError, BundleTruncatedError
from tersor.bundle.parity import ParityGeometry
from tersor.bundle.sources import ByteSource

# A disk loses sectors, and a file system reads pages: around an error less is lost by small reads.
_PAGE_BYTES = 4096


class DamagedFile:
    """A file in which everything can be read: what it lacks, or what the disk lost, is zeros.

    A remote object has no bad places: where it cannot be read, that is an error as ever.
    """

    def __init__(self, file: ByteSource) -> None:
        """For use inside `file.using()`."""
        self._file = file

    def read_into(self, offset: int, out: ByteArray) -> None:
        """Fills `out` with the bytes at `offset`, zeros where there are none."""
        there = max(0, min(len(out), self._file.size - offset))
        out[there:] = 0
        if not self._try(offset, out[:there]):
            for start in range(0, there, _PAGE_BYTES):
                page = out[start : min(start + _PAGE_BYTES, there)]
                if not self._try(offset + start, page):
                    page[:] = 0

    def _try(self, offset: int, out: ByteArray) -> bool:
        try:
            self._file.read_into(offset, out)
        except (BundleReadError, BundleTruncatedError):
            if self._file.is_remote:
                raise
            return False
        return True


def read_blocks(
    source: Readable, geometry: ParityGeometry, first: int, count: int, out: ByteArray
) -> None:
    """Fills `out` with `count` data blocks, zeros beyond the protected bytes.

    Args:
        source: the file.
        geometry: of its parity.
        first: number of the first block; may lie beyond the last one.
        count: how many.
        out: [count * block_bytes].
    """
    size = geometry.block_bytes
    at = 0
    for offset, length in geometry.pieces(first * size, count * size):
        source.read_into(offset, out[at : at + length])
        at += length
    out[at:] = 0
