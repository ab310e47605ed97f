"""Carries a decoder engine's events from its thread to the event loop.

One decode step produces an event for each running sequence, and waking the loop costs a system
call: the events of all sequences share one pending list and one wake-up.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from tersor.runtime.engine.types import Event, GenerationRequest, TextDelta
from tersor.runtime.server.contracts import Generator, Handle

LONG_PROMPT: Final = 16_384  # characters; tokenized aside: nobody waits


class EventStream:
    """The events of one generation, in order. All but `sink` belongs to the loop's thread."""

    def __init__(self, bridge: EventBridge, *, whole: bool) -> None:
        self._bridge = bridge
        self._whole = whole
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False

    def sink(self, event: Event) -> None:
        """Takes an event on the engine's thread."""
        self._bridge.post(self, event)

    def receive(self, event: Event) -> None:
        """Takes an event on the loop's thread."""
        self._events.append(event)
        self.ended = not isinstance(event, TextDelta)
        if self._due() and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def batch(self) -> list[Event]:
        """All events since the last call, at least one; if `whole`, all of the generation."""
        if not self._due():
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events = self._events, []
        return events

    def _due(self) -> bool:
        """Whether the reader should see what has come; the last text waits for the end."""
        if self.ended or self._whole or not self._events:
            return self.ended
        event = self._events[-1]
        return not (isinstance(event, TextDelta) and event.last)


class EventBridge:
    """One for each event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._pending: deque[tuple[EventStream, Event]] = deque()
        self._scheduled = False

    def post(self, stream: EventStream, event: Event) -> None:
        """Hands `event` to `stream` on the loop's thread. Thread-safe, never blocks for long."""
        with self._lock:
            self._pending.append((stream, event))
            if self._scheduled:
                return
            self._scheduled = True
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, deque()
            self._scheduled = False
        for stream, event in pending:
            stream.receive(event)

    @asynccontextmanager
    async def generation(
        self, engine: Generator, request: GenerationRequest, *, whole: bool
    ) -> AsyncIterator[tuple[Handle, EventStream]]:
        """Submits `request`; leaving the context before its last event cancels it.

        Raises whatever `engine.submit` does.
        """
        stream = EventStream(self, whole=whole)
        handle = await self._submit(engine, request, stream)
        try:
            yield handle, stream
        finally:
            if not stream.ended:
                handle.cancel()

    async def _submit(
        self, engine: Generator, request: GenerationRequest, stream: EventStream
    ) -> Handle:
        if len(request.prompt) < LONG_PROMPT:
            return engine.submit(request, stream.sink)
        work = self._loop.run_in_executor(None, engine.submit, request, stream.sink)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_cancel_submitted)
            raise


def _cancel_submitted(work: asyncio.Future[Handle]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().cancel()
