"""Counts the requests in progress, and refuses new ones once the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tersor.runtime.errors import ShuttingDownError


class Admission:
    """Lives on the event loop's thread only."""

    def __init__(self) -> None:
        self._running = 0
        self._open = False
        self._reason = "The server is starting: its models are not open yet. Try again soon."
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Requests in progress."""
        return self._running

    @property
    def accepting(self) -> bool:
        """Whether a new request would be taken."""
        return self._open

    @contextmanager
    def request(self) -> Iterator[None]:
        """Lifetime of one request. Raises ShuttingDownError before `open` and after `refuse`."""
        if not self._open:
            raise ShuttingDownError(self._reason)
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def open(self) -> None:
        """Takes requests from now on."""
        self._open = True

    def refuse(self) -> None:
        """Takes no request any more."""
        self._open = False
        self._reason = "The server is shutting down and takes no new requests: send it elsewhere."

    async def drain(self, seconds: float) -> bool:
        """Waits until no request is in progress; False if some still are after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
