"""The requests that wait for a graph engine, and which of them are computed together."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from tersor.runtime.graph.inputs import Signature

Outputs = dict[str, Tensor]

# After this long without a batch, who was around before says nothing about who is around now.
_MEMORY_SECONDS: Final = 1.0


class Answer(Future[Outputs]):
    """A future that also tells of a cancellation that came too late to prevent the run."""

    unwanted = False

    def cancel(self) -> bool:
        """As `Future.cancel`; a run that has begun ends early once nobody waits for it."""
        self.unwanted = True
        return super().cancel()


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """One admitted request."""

    inputs: Mapping[str, Tensor]
    rows: int
    signature: Signature
    arrived: float
    deadline: float | None
    future: Answer

    def abandoned(self, now: float) -> bool:
        """Whether its caller went away or its deadline has passed."""
        return self.future.unwanted or (self.deadline is not None and self.deadline <= now)


class RequestQueue:
    """First in, first out, except that a batch takes every fitting request along.

    Not thread-safe: the engine holds its lock.

    A batch that is not full waits for company only when company is likely: while fewer requests of
    its kind are here than were around when the last batch ended (those it answered, whose callers
    tend to come back, and those that waited behind it). So one caller alone is never delayed.
    """

    def __init__(self, *, max_rows: int, batched: bool, delay_seconds: float) -> None:
        self._max_rows = max_rows
        self._batched = batched
        self._delay = delay_seconds
        self._requests: list[Request] = []
        self._expected = 1
        self._expected_signature: Signature | None = None
        self._last_end = 0.0

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Appends a request."""
        self._requests.append(request)

    def remove(self, request: Request) -> bool:
        """Takes a request out; False if it is not here (any more)."""
        if request not in self._requests:
            return False
        self._requests.remove(request)
        return True

    def take_all(self) -> list[Request]:
        """Empties the queue."""
        taken, self._requests = self._requests, []
        return taken

    def take_expired(self, now: float) -> list[Request]:
        """Takes out the requests whose deadline has passed."""
        expired = [r for r in self._requests if r.deadline is not None and r.deadline <= now]
        if expired:
            self._requests = [r for r in self._requests if r not in expired]
        return expired

    def take(self, batch: list[Request]) -> None:
        """Takes the batch out."""
        self._requests = [request for request in self._requests if request not in batch]

    def candidates(self) -> list[Request]:
        """The oldest request and what can be computed with it, in order of arrival."""
        head = self._requests[0]
        batch, rows = [head], head.rows
        if not self._batched:
            return batch
        for request in self._requests[1:]:
            if request.signature == head.signature and rows + request.rows <= self._max_rows:
                batch.append(request)
                rows += request.rows
        return batch

    def patience(self, batch: list[Request], now: float) -> float:
        """How many seconds `batch` should still wait for company; 0 or less: run it now."""
        others_wait = len(self._requests) > len(batch)  # then the device is the bottleneck
        full = sum(request.rows for request in batch) >= self._max_rows
        if not self._batched or others_wait or full:
            return 0.0
        remembered = now - self._last_end < _MEMORY_SECONDS
        likely = remembered and batch[0].signature == self._expected_signature
        if len(batch) >= (self._expected if likely else 1):
            return 0.0
        until = batch[0].arrived + self._delay
        if any(r.deadline is not None and r.deadline <= until for r in batch):
            return 0.0  # company must not cost a request its deadline
        return until - now

    def wake_after(self, patience: float | None, now: float) -> float | None:
        """Seconds until something is due: the batch or the next deadline. None: nothing is."""
        due = [r.deadline - now for r in self._requests if r.deadline is not None]
        if patience is not None:
            due.append(patience)
        return max(0.0, min(due)) if due else None

    def ended(self, batch: list[Request], now: float) -> None:
        """Learns from a batch that was answered."""
        kind = batch[0].signature
        waiting = sum(1 for request in self._requests if request.signature == kind)
        self._expected = len(batch) + waiting
        self._expected_signature = kind
        self._last_end = now
