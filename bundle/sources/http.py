"""Range requests for an object on an HTTP server or in an object store.

Every answer is checked before its body is read, and has to be of the version that was opened, so
that bytes of two versions never mix. Requests that fail on their way are repeated from the byte
they came to, a bounded number of times.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from tersor.bundle.decoding import Cancelled, check_cancelled
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleError, BundleReadError, BundleTruncatedError
from tersor.bundle.location import BundleUrl
from tersor.bundle.sources.base import ByteSource
from tersor.bundle.sources.http_answers import Version, check_answer
from tersor.bundle.sources.http_client import HttpClient, Response
from tersor.bundle.sources.http_failures import TransientError
from tersor.bundle.sources.http_settings import HttpSettings

# The first request must ask for something: for what a reader looks at first. Kept.
_HEAD_BYTES: Final = 4096
# Most that is taken from a socket at once: through the loopback 16 KiB read a quarter slower, and
# 1 MiB no faster.
_PIECE_BYTES: Final = 256 << 10
_POLL_SECONDS: Final = 0.05  # how long a pause sleeps before it asks whether it was cancelled


class HttpSource(ByteSource):
    """An object behind an http or https URL.

    Its server has to answer range requests and to send an ETag or Last-Modified.
    """

    is_remote = True

    def __init__(
        self,
        url: str | BundleUrl,
        settings: HttpSettings | None = None,
        *,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Asks for the first bytes, which tell size and version.

        Args:
            url: with its query, if it is presigned.
            settings: limits, proxy and certificates.
            chance: draws the pauses before a request is repeated; None seeds one by the system, so
                that many readers do not come back at the same moment.
            clock: seconds.
            sleep: waits that many seconds.

        Raises:
            BundleNotFoundError: there is no such object.
            BundleReadError: not a URL, or the server cannot be reached, refuses, or does not do
                ranges.
            BundleFormatError: the object is empty.
        """
        where = url if isinstance(url, BundleUrl) else BundleUrl.parse(url)
        self._settings = settings or HttpSettings()
        self._chance = chance or random.Random()  # noqa: S311 - nothing secret is drawn
        self._clock = clock
        self._sleep = sleep
        self._version: Version | None = None
        try:
            self._client = HttpClient(where, self._settings)
            try:
                self._head, size = self._read_head()
            except BaseException:
                self._client.close()
                raise
        except BundleError as error:
            raise type(error)(f"{where}: {error}") from error
        super().__init__(str(where), size)

    def read_into(self, offset: int, out: ByteArray, *, cancelled: Cancelled | None = None) -> None:
        if offset + out.size > self.size:
            raise BundleTruncatedError(
                f"the object has {self.size} bytes, expected data up to {offset + out.size}"
            )
        if offset + out.size <= self._head.size:
            out[:] = self._head[offset : offset + out.size]
            return
        self._fill(_Wanted(offset, out.data), cancelled)

    def _release(self) -> None:
        self._client.close()

    def _read_head(self) -> tuple[ByteArray, int]:
        """The first bytes and the size of the object."""
        head = np.empty(_HEAD_BYTES, np.uint8)
        wanted = _Wanted(0, head.data)
        self._fill(wanted, None)
        assert self._version is not None
        return head[: wanted.next], self._version.size

    def _fill(self, wanted: _Wanted, cancelled: Cancelled | None) -> None:
        """Repeats requests until `wanted` is whole."""
        failures = 0
        while wanted.out:
            check_cancelled(cancelled)
            try:
                self._request(wanted, cancelled)
            except TransientError as failure:
                failures += 1
                if failures == self._settings.max_attempts:
                    raise BundleReadError(
                        f"cannot read at offset {wanted.next}: {failure}; gave up after "
                        f"{failures} requests"
                    ) from None
                self._pause(failures, failure.retry_after_seconds, cancelled)

    def _request(self, wanted: _Wanted, cancelled: Cancelled | None) -> None:
        """One request for what is missing; keeps what arrives, also when it fails."""
        first, last = wanted.next, wanted.next + len(wanted.out) - 1
        headers = {"Range": f"bytes={first}-{last}"}
        if self._version is not None:
            headers |= self._version.conditions
        with self._client.get(headers) as response:
            version = check_answer(response.status, response.headers, first, last, self._version)
            if self._version is None:
                self._version = version
                wanted.shorten(version.size - first)
            self._receive(response, wanted, cancelled)

    def _receive(self, response: Response, wanted: _Wanted, cancelled: Cancelled | None) -> None:
        """Reads the body, and no more of it than is wanted."""
        start = self._clock()
        total = len(wanted.out)
        while wanted.out:
            check_cancelled(cancelled)
            piece = response.read1(min(_PIECE_BYTES, len(wanted.out)))
            if not piece:
                raise TransientError(
                    f"the answer ended after {total - len(wanted.out)} of {total} bytes"
                )
            wanted.put(piece)
            received = total - len(wanted.out)
            allowed = self._settings.idle_seconds + received / self._settings.min_bytes_per_second
            if wanted.out and self._clock() - start > allowed:
                raise TransientError(
                    f"slower than {self._settings.min_bytes_per_second} bytes a second"
                )

    def _pause(
        self, failures: int, retry_after_seconds: float | None, cancelled: Cancelled | None
    ) -> None:
        """Waits before the next request: as long as the server asks for, or a drawn time."""
        settings = self._settings
        longest = settings.backoff_seconds * 2.0 ** (failures - 1)
        seconds = min(longest, settings.max_backoff_seconds) * self._chance.uniform(0.5, 1.0)
        if retry_after_seconds is not None:
            seconds += min(retry_after_seconds, settings.max_retry_after_seconds)
        while seconds > 0:
            check_cancelled(cancelled)
            self._sleep(min(seconds, _POLL_SECONDS))
            seconds -= _POLL_SECONDS


class _Wanted:
    """The bytes from `next` on that have not arrived, and where they go."""

    __slots__ = ("next", "out")

    def __init__(self, offset: int, out: memoryview) -> None:
        self.next = offset
        self.out = out

    def put(self, piece: bytes) -> None:
        """Takes the next bytes."""
        self.out[: len(piece)] = piece
        self.out = self.out[len(piece) :]
        self.next += len(piece)

    def shorten(self, size: int) -> None:
        """Wants no more than `size` bytes."""
        self.out = self.out[:size]
