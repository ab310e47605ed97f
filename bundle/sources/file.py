"""Positional reads of one open file, safe from many threads and against truncation.

Not a memory map: when another process truncates a mapped file, touching the lost pages kills this
process with SIGBUS, which no `except` can catch; and a page fault per 4 KiB of cold file reads
slower than one large `preadv`. A short positional read is an error like any other.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tersor.bundle.decoding import Cancelled
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import (
    BundleFormatError,
    BundleNotFoundError,
    BundleReadError,
    BundleTruncatedError,
    path_text,
)
from tersor.bundle.sources.base import ByteSource


class FileSource(ByteSource):
    """An open regular file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens `path` for reading.

        Raises:
            BundleNotFoundError: there is no such file.
            BundleFormatError: it is a folder, a device or a pipe.
            BundleReadError: the operating system refuses.
        """
        self.path = Path(path)
        self._fd, size = open_regular(self.path)
        super().__init__(path_text(self.path), size)

    @classmethod
    @contextmanager
    def opened(cls, path: str | os.PathLike[str]) -> Iterator[Self]:
        """Opens `path` for the block's reads, and closes it after them. Raises as `FileSource`."""
        file = cls(path)
        try:
            with file.using():
                yield file
        finally:
            file.close()

    def read_into(self, offset: int, out: ByteArray, *, cancelled: Cancelled | None = None) -> None:
        del cancelled  # nothing is waited for
        view = out.data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise BundleReadError(
                    f"cannot read at offset {offset + done}: {error.strerror or error}"
                ) from error
            if count == 0:
                raise ended_early(offset + done, offset + len(view))
            done += count

    def _release(self) -> None:
        os.close(self._fd)


def ended_early(end: int, expected: int) -> BundleTruncatedError:
    """The error for a file that has become shorter."""
    return BundleTruncatedError(
        f"the file ends at byte {end}, expected data up to {expected}; it was truncated while "
        "open, so copy it again"
    )


def open_regular(path: Path) -> tuple[int, int]:
    """A descriptor of a regular file and its size. Raises as `FileSource`."""
    try:
        return _open_regular(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleNotFoundError(f"there is no file {path_text(path)}") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise BundleReadError(f"cannot open {path_text(path)}: {why}") from error
    except ValueError as error:  # the path holds a null character
        raise BundleReadError(f"cannot open {path_text(path)}: {error}") from error


def _open_regular(path: Path) -> tuple[int, int]:
    # Asked first, because opening a device may already do something; asked again of what was
    # opened, because the name may have got another file; and opened without blocking, because a
    # pipe would wait for its writer for ever.
    _require_regular(path.stat(), path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        _require_regular(status, path)
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def _require_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BundleFormatError(f"{path_text(path)} is not a regular file; expected a bundle")
