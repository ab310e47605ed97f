"""The background thread that loads groups ahead of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from tersor.runtime.residency.state import GroupSlot, ModelState


class Prefetcher:
    """A queue of groups and one thread that hands them to `load`, in order.

    `ask` and `forget` are called with `lock` held; `load` is called without it and must not raise.
    """

    def __init__(self, lock: threading.Lock, load: Callable[[GroupSlot], None]) -> None:
        self._asked = threading.Condition(lock)
        self._load = load
        self._queue: deque[GroupSlot] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="tersor-loader", daemon=True)
        self._thread.start()

    def ask(self, slot: GroupSlot) -> None:
        """Puts a group that is not on the device into the queue, unless it is there already."""
        if slot.weights is None and not slot.wanted:
            slot.wanted = True
            self._queue.append(slot)
            self._asked.notify()

    def forget(self, model: ModelState) -> None:
        """Takes a model's groups out of the queue."""
        for slot in model.slots:
            slot.wanted = False
        self._queue = deque(slot for slot in self._queue if slot.model is not model)

    def close(self) -> None:
        """Ends the thread after the load it is in. Called without the lock."""
        with self._asked:
            self._closed = True
            self._asked.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._asked:
                while not self._queue and not self._closed:
                    self._asked.wait()
                if self._closed:
                    return
                slot = self._queue.popleft()
                slot.wanted = False
            self._load(slot)
