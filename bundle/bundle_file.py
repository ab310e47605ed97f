"""Positional reads of one open file, safe from many threads and against truncation.

Not a memory map: when another process truncates a mapped file, touching the lost pages kills this
process with SIGBUS, which no `except` can catch; and a page fault per 4 KiB of cold file reads
slower than one large `preadv`. A short positional read is an error like any other.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import (
    BundleFormatError,
    BundleNotFoundError,
    BundleReadError,
    BundleTruncatedError,
    path_text,
)


class BundleFile:
    """An open regular file; closing waits until every `using()` block has left."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens `path` for reading.

        Raises:
            BundleNotFoundError: there is no such file.
            BundleFormatError: it is a folder, a device or a pipe.
            BundleReadError: the operating system refuses.
        """
        self.path = Path(path)
        try:
            self._fd, self.size = _open_regular(self.path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleNotFoundError(f"there is no file {path_text(self.path)}") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise BundleReadError(f"cannot open {path_text(self.path)}: {why}") from error
        except ValueError as error:  # the path holds a null character
            raise BundleReadError(f"cannot open {path_text(self.path)}: {error}") from error
        self._users = 0
        self._closed = False
        self._idle = threading.Condition()

    @classmethod
    @contextmanager
    def opened(cls, path: str | os.PathLike[str]) -> Iterator[Self]:
        """Opens `path` for the block's reads, and closes it after them. Raises as `BundleFile`."""
        file = cls(path)
        try:
            with file.using():
                yield file
        finally:
            file.close()

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keeps the file open inside the block. Raises BundleReadError once closed."""
        with self._idle:
            if self._closed:
                raise BundleReadError("the reader is closed; open the bundle again")
            self._users += 1
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def read_into(self, offset: int, out: ByteArray) -> None:
        """Fills `out` with the bytes at `offset`; only inside `using()`.

        Raises:
            BundleTruncatedError: the file ends before `out` is full.
            BundleReadError: the operating system reports an error.
        """
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
                raise BundleTruncatedError(
                    f"the file ends at byte {offset + done}, expected data up to "
                    f"{offset + len(view)}; it was truncated while open, so copy it again"
                )
            done += count

    def close(self) -> None:
        """Closes the file after its last user has left. May be called twice."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            while self._users:
                self._idle.wait()
        os.close(self._fd)


def _open_regular(path: Path) -> tuple[int, int]:
    """A descriptor and the size. Raises OSError, ValueError and BundleFormatError."""
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
