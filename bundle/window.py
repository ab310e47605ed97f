"""How many stored bytes a reader holds at once: a fair semaphore that counts bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tersor.bundle.decoding import Cancelled, check_cancelled

# Four threads with a block of 16 MiB each, the largest that a writer should make.
DEFAULT_WINDOW_BYTES: Final = 64 << 20
_POLL_SECONDS: Final = 0.05  # how often a waiting thread asks whether it was cancelled


class ByteWindow:
    """Lets threads hold bytes as long as their sum stays within a window.

    First come, first served: a large block is not overtaken by small ones for ever. A block that is
    larger than the window is let in alone. Whoever holds bytes must not ask for more.
    """

    def __init__(self, window_bytes: int) -> None:
        """Raises ValueError unless the window has at least a byte."""
        if window_bytes < 1:
            raise ValueError(f"window_bytes is {window_bytes}, expected at least 1")
        self.window_bytes = window_bytes
        self._held = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int, cancelled: Cancelled | None = None) -> Iterator[None]:
        """Waits until `count` bytes fit, and holds them inside the block.

        Raises:
            BundleCancelledError: `cancelled()` became true while waiting.
        """
        self._acquire(count, cancelled)
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()

    def _acquire(self, count: int, cancelled: Cancelled | None) -> None:
        place = object()
        with self._changed:
            self._waiting.append(place)
        try:
            while not self._entered(place, count, None if cancelled is None else _POLL_SECONDS):
                # Outside the lock: it is the caller's code.
                check_cancelled(cancelled)
        except BaseException:
            with self._changed:
                self._waiting.remove(place)
                self._changed.notify_all()
            raise

    def _entered(self, place: object, count: int, timeout: float | None) -> bool:
        """Whether it is the turn of `place` and its bytes fit, after waiting for a change."""
        with self._changed:
            if not self._fits(place, count):
                self._changed.wait(timeout)
                if not self._fits(place, count):
                    return False
            self._waiting.popleft()
            self._held += count
            self._changed.notify_all()  # the next one may fit as well
            return True

    def _fits(self, place: object, count: int) -> bool:
        return self._waiting[0] is place and (
            self._held == 0 or self._held + count <= self.window_bytes
        )
