"""Where a bundle is: a path, or an http or https URL."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from tersor.bundle.errors import BundleReadError, path_text

BUNDLE_SUFFIX: Final = ".tersor"
_SCHEME: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_SCHEMES: Final = ("http", "https")


@dataclass(frozen=True, slots=True)
class BundleUrl:
    """An http or https URL that has been checked.

    Its text form leaves the query out: that of a presigned URL is a secret. `whole` has it.
    """

    whole: str = field(repr=False)  # what is requested: without fragment
    shown: str  # for messages: without query

    @classmethod
    def parse(cls, text: str) -> Self:
        """Checks a URL.

        Raises:
            BundleReadError: not a URL of a bundle; the message does not show the query.
        """
        whole = text.partition("#")[0]
        shown = _shown(whole)
        if not whole.isprintable() or " " in whole:
            raise BundleReadError(f"{shown} is not a URL: it has spaces or control characters")
        try:
            parts = urlsplit(whole)
            port = parts.port
        except ValueError:  # its message may quote what must not be shown
            raise BundleReadError(f"{shown} is not a URL: its host or port is malformed") from None
        if parts.scheme not in _SCHEMES:
            raise BundleReadError(
                f"{shown}: bundles are read from files and over http and https, not "
                f"{parts.scheme}; most object stores presign https URLs"
            )
        if not parts.hostname or port == 0:
            raise BundleReadError(f"{shown} is not a URL: it names no host")
        if "@" in parts.netloc:
            raise BundleReadError(
                f"{shown}: the URL holds a user name or a password, which other processes can "
                "see; use a presigned URL"
            )
        return cls(whole, shown)

    def __str__(self) -> str:
        return self.shown

    @property
    def is_encrypted(self) -> bool:
        """Whether it is https."""
        return urlsplit(self.whole).scheme == "https"


Location = Path | BundleUrl


def parse_location(text: str | os.PathLike[str] | BundleUrl) -> Location:
    """What a person or a caller means by `text`: a string with a scheme is a URL.

    Raises:
        BundleReadError: a URL that is not one, or of another scheme than http and https.
    """
    if isinstance(text, BundleUrl):
        return text
    if isinstance(text, str) and _SCHEME.match(text):
        return BundleUrl.parse(text)
    return Path(text)


def location_text(location: Location) -> str:
    """How messages call a location."""
    return str(location) if isinstance(location, BundleUrl) else path_text(location)


def file_name(location: Location) -> str:
    """The last part of a path, or of a URL's path; empty if there is none."""
    if isinstance(location, BundleUrl):
        return unquote(urlsplit(location.whole).path).rpartition("/")[2]
    return location.name


def _shown(text: str) -> str:
    """A URL without user, password and query, fit for a terminal."""
    shown = re.sub(r"//[^/?]*@", "//", text.partition("?")[0])
    return shown if shown.isprintable() else repr(shown)
