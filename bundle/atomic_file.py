"""A file that appears whole under its name, or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tersor.bundle.errors import BundleWriteError, path_text
from tersor.bundle.sources import FileSource


class AtomicFile:
    """Appends to a temporary file beside `path`; `publish` syncs and renames it.

    What was appended can be read back (`opened`) and replaced (`write_at`).

    Beside, not in the system's temporary folder: a rename is atomic only within one file system. A
    process that is killed leaves a hidden `.name.*.partial`, never anything at `path`.
    """

    def __init__(self, path: Path, *, like: Path | None = None) -> None:
        """Creates the temporary file.

        Args:
            path: the file's name at last.
            like: a file whose permissions it gets.

        Raises:
            BundleWriteError: the folder does not exist or cannot be written.
        """
        if path.is_dir():
            raise BundleWriteError(
                f"cannot write {path_text(path)}: it is a folder; give a file name"
            )
        self.path = path
        self.offset = 0
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
        try:
            # Exclusive, and with the permissions that the user's umask gives any new file.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._temporary, flags, 0o666), "wb", 1 << 20)
            if like is not None:
                self._copy_mode(like)
        except OSError as error:
            raise self._failed(error) from error
        except ValueError as error:  # the path holds a null character
            raise BundleWriteError(f"cannot write {path_text(path)}: {error}") from error

    def append(self, data: bytes) -> int:
        """Appends bytes and returns the offset at which they begin."""
        start = self.offset
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error
        self.offset += len(data)
        return start

    def align(self, boundary: int) -> None:
        """Appends zeros up to a multiple of `boundary`."""
        self.append(bytes(-self.offset % boundary))

    def reserve(self, size: int) -> int:
        """Appends zeros that take no space until they are written, and returns their offset."""
        start = self.offset
        try:
            self._file.flush()
            os.ftruncate(self._file.fileno(), start + size)
            self._file.seek(start + size)
        except OSError as error:
            raise self._failed(error) from error
        self.offset += size
        return start

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Replaces bytes that were appended or reserved before."""
        assert offset + len(data) <= self.offset
        view = memoryview(data)
        try:
            self._file.flush()
            while view:
                written = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise self._failed(error) from error

    @contextmanager
    def opened(self) -> Iterator[FileSource]:
        """What was appended so far, for reading; sees every later `write_at`."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        with FileSource.opened(self._temporary) as file:
            yield file

    def publish(self) -> None:
        """Makes the file durable and gives it its name, replacing what was there."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._failed(error) from error

    def discard(self) -> None:
        """Removes the temporary file, if it is still there. Never raises for a full disk."""
        try:
            self._file.close()
        except OSError:  # the buffered rest cannot be written, and is not wanted
            pass
        finally:
            self._temporary.unlink(missing_ok=True)

    def _copy_mode(self, like: Path) -> None:
        try:
            os.fchmod(self._file.fileno(), stat.S_IMODE(like.stat().st_mode))
        except OSError:
            self.discard()
            raise

    def _failed(self, error: OSError) -> BundleWriteError:
        why = error.strerror or str(error)
        return BundleWriteError(f"cannot write {path_text(self.path)}: {why}")
