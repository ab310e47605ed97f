"""Where the time of a load goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


class PhaseTimes:
    """Seconds by phase, added up over one load; safe from many threads.

    The bundle measures "open", "read", "verify" and "decode", as wall time of the calling thread,
    and never one inside another: within one thread the phases add up to at most the elapsed time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside the `with` block to `phase`, also when it raises."""
        start = self._clock()
        try:
            yield
        finally:
            self._add(phase, self._clock() - start)

    @contextmanager
    def share(self) -> Iterator[PhaseTimes]:
        """Divides the wall time of the `with` block among the phases of the work inside it.

        The work may run in several threads at once: each measures on the yielded object, and every
        phase gets the part of the wall time that it had of all measured time.
        """
        busy = PhaseTimes(self._clock)
        start = self._clock()
        try:
            yield busy
        finally:
            elapsed = self._clock() - start
            total = sum(busy.seconds.values())
            for phase, seconds in busy.seconds.items():
                self._add(phase, elapsed * seconds / total if total else 0.0)

    def _add(self, phase: str, seconds: float) -> None:
        with self._lock:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


def measured(times: PhaseTimes | None, phase: str) -> AbstractContextManager[None]:
    """`times.measure(phase)`, or nothing where nobody asked for times."""
    return nullcontext() if times is None else times.measure(phase)


def shared(times: PhaseTimes | None) -> AbstractContextManager[PhaseTimes | None]:
    """`times.share()`, or nothing where nobody asked for times."""
    return nullcontext() if times is None else times.share()
