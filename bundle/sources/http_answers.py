"""What the answer to a range request means: the bytes asked for, a reason to ask again, or the end.

Every answer is distrusted: nothing of a body is read before its status and headers have passed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from tersor.bundle.errors import BundleFormatError, BundleNotFoundError, BundleReadError
from tersor.bundle.sources.http_failures import TransientError

# 19 digits hold every 64-bit size; more would only be work.
_CONTENT_RANGE: Final = re.compile(r"bytes +(\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,9}", re.ASCII)
_EMPTY: Final = "bytes */0"
TRIED_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE: Final = frozenset({404, 410})
_REFUSED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Which version of an object was opened. Every answer must be of the same."""

    size: int
    etag: str | None
    last_modified: str | None

    @property
    def conditions(self) -> dict[str, str]:
        """Request headers by which the server refuses (412) if it has another version."""
        # A weak tag never matches there; `is_of` compares it all the same.
        if self.etag is not None and not self.etag.startswith("W/"):
            return {"If-Match": self.etag}
        if self.last_modified is not None:
            return {"If-Unmodified-Since": self.last_modified}
        return {}

    def is_of(self, opened: Version) -> bool:
        """Whether both are the same version."""
        if self.size != opened.size:
            return False
        if opened.etag is not None:
            return self.etag == opened.etag
        return self.last_modified == opened.last_modified


def check_answer(
    status: int, headers: Mapping[str, str], first: int, last: int, version: Version | None
) -> Version:
    """Checks status and headers of the answer to a request for bytes `first` to `last`.

    Args:
        status: of the answer.
        headers: of the answer; looked up without regard to case.
        first: first byte asked for.
        last: last byte asked for. The very first answer may end earlier, with the object.
        version: what was opened; None while it is being opened.

    Returns:
        The version that the answer is of.

    Raises:
        TransientError: asking again may help.
        BundleNotFoundError: there is no such object.
        BundleReadError: the server refuses, does not do ranges, has another version, or its answer
            contradicts itself or the request.
        BundleFormatError: the object is empty.
    """
    if status != 206:
        _raise_for(status, headers, version)
    encoding = headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise BundleReadError(
            f"the server encodes its answer as {encoding[:40]!r}, expected identity: ranges of "
            "encoded bytes are not ranges of the bundle; switch compression off for it"
        )
    got = _version(headers, first, last, version)
    wanted = min(last, got.size - 1) - first + 1
    length = headers.get("Content-Length", str(wanted))
    if length != str(wanted):
        raise BundleReadError(
            f"the server announces {length[:40]!r} bytes for a range of {wanted}; its answer "
            "contradicts itself"
        )
    return got


def _version(headers: Mapping[str, str], first: int, last: int, version: Version | None) -> Version:
    """The version an answer is of. Raises BundleReadError if it is not the one expected."""
    text = headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise BundleReadError(
            f"the server answers with Content-Range {text[:60]!r}, expected "
            f"'bytes {first}-{last}/SIZE'"
        )
    got_first, got_last, size = (int(number) for number in match.groups())
    got = Version(size=size, etag=headers.get("ETag"), last_modified=headers.get("Last-Modified"))
    if version is None:
        for validator in (got.etag, got.last_modified):
            # They are sent back.
            if validator is not None and not (validator.isprintable() and len(validator) <= 1024):
                raise BundleReadError(
                    f"the server sends the ETag or Last-Modified {validator[:40]!r}; expected at "
                    "most 1024 printable characters"
                )
        if got.etag is None and got.last_modified is None:
            raise BundleReadError(
                "the server sends neither ETag nor Last-Modified, so a bundle that is replaced "
                "while it is read could not be told; serve it by a server that does"
            )
    elif not got.is_of(version):
        raise replaced()
    if (got_first, got_last) != (first, min(last, size - 1)):
        raise BundleReadError(
            f"the server answers with bytes {got_first} to {got_last} of {size}, asked for "
            f"{first} to {last}"
        )
    return got


def _raise_for(status: int, headers: Mapping[str, str], version: Version | None) -> None:
    if status in TRIED_AGAIN:
        raise TransientError(
            f"the server answers {status}", retry_after_seconds=retry_after(headers)
        )
    if status in _GONE:
        raise BundleNotFoundError(f"there is no such object (the server answers {status})")
    if status in _REFUSED:
        raise BundleReadError(
            f"the server refuses access ({status}); presign the URL, or renew it if it has expired"
        )
    # Without a version nothing was asked on condition; with one, 416 says that it became shorter.
    if version is not None and status in {412, 416}:
        raise replaced()
    if status == 416 and headers.get("Content-Range") == _EMPTY:
        raise BundleFormatError("the object is empty; expected a bundle")
    if status == 200:
        etag = headers.get("ETag")
        if version is not None and etag is not None and etag != version.etag:
            raise replaced()
        raise BundleReadError(
            "the server does not support ranges: it answers 200 with the whole object instead of "
            "206; download the bundle, or serve it by a server that does"
        )
    raise BundleReadError(f"the server answers {status}, expected 206 with a part of the object")


def replaced() -> BundleReadError:
    """The error for another version than the one that was opened."""
    return BundleReadError("the object was replaced while it was open; open the bundle again")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait; None if it does not, or not in a way that is understood.

    A date counts from the answer's own `Date`, so that no clock here has to be right.
    """
    text = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        then = parsedate_to_datetime(text)
        now = parsedate_to_datetime(headers.get("Date", ""))
        return max(0.0, (then - now).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None
