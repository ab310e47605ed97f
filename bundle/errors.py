"""Everything that can be wrong with a bundle, in one tree.

BundleError
├── BundleFormatError         not a valid bundle (magic, version, structure, manifest)
│   └── BundleTruncatedError  the file ends before its declared length
├── BundleCorruptError        valid structure, damaged content (a checksum does not match)
├── BundleLimitError          a declared size exceeds a cap of this build, or the memory there is
├── BundleNotFoundError       no such file, tensor, plane or asset
├── BundleReadError           the operating system cannot read the file, or the reader is closed
├── BundleParityError         there is no parity, or more is damaged than it restores
├── BundleWriteError          the writer was misused, or the destination cannot be written
└── BundleCancelledError      the caller cancelled a read
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tersor.bundle.repair import RepairReport


class BundleError(Exception):
    """Root of the bundle errors: the message says what, got, expected and what to do."""


class BundleFormatError(BundleError):
    """The bytes are not a valid bundle."""


class BundleTruncatedError(BundleFormatError):
    """The file ends before its declared length."""


class BundleCorruptError(BundleError):
    """The structure is valid but the content is damaged."""


class BundleLimitError(BundleError):
    """A declared size exceeds a cap of this build, or the memory there is."""


class BundleNotFoundError(BundleError):
    """There is no such file, tensor, plane or asset."""


class BundleReadError(BundleError):
    """The operating system cannot read the file, or the reader is closed."""


class BundleParityError(BundleError):
    """There is no parity, or more is damaged than it restores.

    `report` says what is lost, where that is known.
    """

    def __init__(self, message: str, report: RepairReport | None = None) -> None:
        super().__init__(message)
        self.report = report


class BundleWriteError(BundleError):
    """The writer was misused, or the destination cannot be written."""


class BundleCancelledError(BundleError):
    """The caller cancelled a read."""


def path_text(path: Path) -> str:
    """How messages call a file: quoted if its name could break a line or steer a terminal."""
    text = str(path)
    return text if text.isprintable() else repr(text)
