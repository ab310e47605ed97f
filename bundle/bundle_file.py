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

from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import (
    BundleFormatError,
    BundleNotFoundError,
    BundleReadError,
    BundleTruncatedError,
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
            # Not blocking: opening a pipe would wait for its writer for ever.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleNotFoundError(f"there is no file {self.path}") from error
        except (OSError, ValueError) as error:
            raise BundleReadError(f"cannot open {self.path}: {error}") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise BundleFormatError(f"{self.path} is not a regular file; expected a bundle")
        self.size: int = status.st_size
        self._fd = fd
        self._users = 0
        self._closed = False
        self._idle = threading.Condition()

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
