"""A file that appears whole under its name, or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tersor.bundle.errors import BundleWriteError, path_text


class AtomicFile:
    """Appends to a temporary file beside `path`; `publish` syncs and renames it.

    Beside, not in the system's temporary folder: a rename is atomic only within one file system. A
    process that is killed leaves a hidden `.name.*.partial`, never anything at `path`.
    """

    def __init__(self, path: Path) -> None:
        """Creates the temporary file.

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

    def _failed(self, error: OSError) -> BundleWriteError:
        why = error.strerror or str(error)
        return BundleWriteError(f"cannot write {path_text(self.path)}: {why}")
