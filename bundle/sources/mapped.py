"""A file mapped into memory: stored bytes are decoded where the page cache has them.

Only where somebody asks for it. If another process truncates the file, touching the lost pages
kills this process (see `file`), and bytes that were verified may change until they are decoded if
another process writes to the file. It is for files that nobody else changes.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from tersor.bundle.decoding import Cancelled
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleReadError, path_text
from tersor.bundle.sources.base import ByteSource
from tersor.bundle.sources.file import ended_early, open_regular


class MappedSource(ByteSource):
    """A regular file, mapped read-only; views keep the map alive after `close`."""

    has_views = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens and maps `path`.

        Raises:
            BundleNotFoundError: there is no such file.
            BundleFormatError: it is a folder, a device or a pipe.
            BundleReadError: the operating system refuses, or the address space does not suffice.
        """
        file = Path(path)
        self._fd, size = open_regular(file)
        try:
            # An empty file cannot be mapped.
            self._map = mmap.mmap(self._fd, size, access=mmap.ACCESS_READ) if size else None
        except (OSError, ValueError) as error:
            os.close(self._fd)
            why = error.strerror if isinstance(error, OSError) else error
            raise BundleReadError(f"cannot map {path_text(file)}: {why}") from error
        super().__init__(path_text(file), size)

    def read_into(self, offset: int, out: ByteArray, *, cancelled: Cancelled | None = None) -> None:
        del cancelled  # nothing is waited for
        out[:] = self.view(offset, out.size)

    def view(self, offset: int, size: int) -> ByteArray:
        # Does not make a map safe, but a file that was truncated before is an error, not the end of
        # the process. Takes half a microsecond.
        end = min(self.size, os.fstat(self._fd).st_size)
        if offset + size > end:
            raise ended_early(end, offset + size)
        if self._map is None:
            return np.empty(0, np.uint8)
        return np.frombuffer(self._map, np.uint8, size, offset)

    def _release(self) -> None:
        os.close(self._fd)
        # Not closed: the last view unmaps it.
        self._map = None
