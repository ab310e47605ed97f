"""Where the bytes of a bundle come from: a file, a mapped file, or a URL."""

from __future__ import annotations

import os
from typing import Literal

from tersor.bundle.location import BundleUrl, parse_location
from tersor.bundle.sources.base import ByteSource
from tersor.bundle.sources.file import FileSource

__all__ = [
    "Access",
    "BundlePlace",
    "ByteSource",
    "FileSource",
    "open_sequential",
    "open_source",
]

Access = Literal["read", "map"]
# Whatever names a bundle to be read; a source is taken over and closed with its reader.
BundlePlace = str | os.PathLike[str] | BundleUrl | ByteSource


def open_source(place: BundlePlace, *, access: Access = "read") -> ByteSource:
    """Opens the bytes of a bundle.

    Args:
        place: a path, an http or https URL, or a source, which is returned as it is.
        access: how a file is read. "map" maps it into memory instead: nothing is copied before it
            is decoded, but a file that another process truncates meanwhile kills this one.

    Raises:
        BundleNotFoundError: there is no such file or object.
        BundleFormatError: it is not a regular file, or empty.
        BundleReadError: the operating system or the server refuses, or not a URL.
        ValueError: `access` is neither, or "map" for what is not a file.
    """
    if access not in {"read", "map"}:
        raise ValueError(f"access is {access!r}, expected 'read' or 'map'")
    if not isinstance(place, ByteSource):
        place = parse_location(place)
    if access == "map":
        if isinstance(place, ByteSource | BundleUrl):
            raise ValueError("only the path of a file can be mapped")
        from tersor.bundle.sources.mapped import MappedSource

        return MappedSource(place)
    if isinstance(place, BundleUrl):
        from tersor.bundle.sources.http import HttpSource

        return HttpSource(place)
    return place if isinstance(place, ByteSource) else FileSource(place)


def open_sequential(place: BundlePlace, *, access: Access = "read") -> ByteSource:
    """Opens a source that is read from one end to the other, once; as `open_source`."""
    source = open_source(place, access=access)
    if not source.is_remote:
        return source
    from tersor.bundle.sources.read_ahead import ReadAhead

    return ReadAhead(source)
