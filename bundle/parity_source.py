"""Reading protected bytes as blocks, also from a file that is cut off or partly unreadable."""

from __future__ import annotations

from typing import Protocol

from tersor.bundle.bundle_file import BundleFile
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleReadError, BundleTruncatedError
from tersor.bundle.parity import ParityGeometry

# A disk loses sectors, and a file system reads pages: around an error less is lost by small reads.
_PAGE_BYTES = 4096


class ByteSource(Protocol):
    """Bytes at offsets."""

    def read_into(self, offset: int, out: ByteArray) -> None:
        """Fills `out` with the bytes at `offset`."""


class DamagedFile:
    """A file in which everything can be read: what it lacks, or what the disk lost, is zeros."""

    def __init__(self, file: BundleFile) -> None:
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
            return False
        return True


def read_blocks(
    source: ByteSource, geometry: ParityGeometry, first: int, count: int, out: ByteArray
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
