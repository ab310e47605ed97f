"""Serves one graph program: admission, dynamic batching over requests, isolation of errors."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor

from tersor.bundle.program import GraphProgram
from tersor.models.errors import RunAbandonedError
from tersor.runtime.config import EngineConfig
from tersor.runtime.errors import (
    CancelledRequestError,
    DeadlineError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
)
from tersor.runtime.failures import concerns_weights, run_failure
from tersor.runtime.graph.inputs import check_inputs, signature
from tersor.runtime.graph.queue import Answer, Outputs, Request, RequestQueue

_log = logging.getLogger(__name__)

_SMOOTHING: Final = 0.2  # weight of the newest run in the mean that a retry hint is made of
_RETRY_BOUNDS: Final = (0.05, 30.0)  # seconds


class GraphRunner(Protocol):
    """What computes: `models.graph.GraphModel`."""

    def run(
        self, inputs: Mapping[str, Tensor], *, abandoned: Callable[[], bool] | None = None
    ) -> dict[str, Tensor]: ...


class GraphObserver(Protocol):
    """Receives the engine's measurements. Must not block and must not raise."""

    def queued(self, seconds: float) -> None: ...
    def ran(self, seconds: float, *, rows: int, requests: int) -> None: ...
    def failed(self, reason: str) -> None: ...
    def queue_depth(self, waiting: int, running: int) -> None: ...


class GraphEngine:
    """Runs requests on one thread, several at once where the program allows it. Thread-safe.

    Args:
        name: the model's name, for messages.
        program: what the model takes and gives.
        model: runs it.
        config: `max_batch_size` (rows), `max_queue_size` (requests), `batch_delay_seconds`.
        observer: receives measurements.
        device: inputs are moved there, outputs come back to the host.
        clock: seconds, monotonic; deadlines are on it.
        load_seconds: seconds that runs waited for weights so far; left out of a run's time.
    """

    def __init__(
        self,
        *,
        name: str,
        program: GraphProgram,
        model: GraphRunner,
        config: EngineConfig,
        observer: GraphObserver,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
        load_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.name = name
        self.program = program
        self._model = model
        self._config = config
        self._observer = observer
        self._device = device
        self._clock = clock
        self._load_seconds = load_seconds
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue = RequestQueue(
            max_rows=min(config.max_batch_size, program.max_batch_size),
            batched=program.batch_dim_dynamic,
            delay_seconds=config.batch_delay_seconds,
        )
        self._running = 0
        self._mean_run_seconds = 0.0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"tersor-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests in the batch that is being computed."""
        return self._running

    def submit(
        self, inputs: Mapping[str, Tensor], *, deadline: float | None = None
    ) -> Future[Outputs]:
        """Queues a request; the future gives its outputs (on the host) or raises a ServingError.

        `Future.cancel()` takes a request that has not started out of the queue. A run ends early
        once every one of its requests was cancelled or is past its deadline.

        Args:
            inputs: one tensor per input of the program; must not change until the future is done.
            deadline: on the engine's clock; a request that has not been answered by then may fail.

        Raises:
            InvalidRequestError: an input is missing, unknown, or of another dtype or shape.
            DeadlineError: the deadline has passed.
            OverloadedError: the queue is full; it says when to try again.
            ShuttingDownError: the engine is closing.
        """
        try:
            return self._admit(inputs, deadline)
        except ServingError as error:
            self._observer.failed(error.reason)
            raise

    def close(self, drain_seconds: float = 0.0) -> None:
        """Takes no new requests, gives those in the queue `drain_seconds`, fails the rest."""
        with self._lock:
            self._closing = True
            self._changed.notify_all()
        if drain_seconds > 0:
            self._thread.join(drain_seconds)
        with self._lock:
            abandoned = self._queue.take_all()
            self._changed.notify_all()
        for request in abandoned:
            self._refuse(request, ShuttingDownError(f"model {self.name} is shutting down"))
        self._thread.join()
        self._report()

    def _admit(self, inputs: Mapping[str, Tensor], deadline: float | None) -> Future[Outputs]:
        rows = check_inputs(self.name, self.program, inputs)
        now = self._clock()
        if deadline is not None and deadline <= now:
            raise DeadlineError(f"model {self.name}: the deadline passed before the request came")
        request = Request(
            inputs=dict(inputs),
            rows=rows,
            signature=signature(self.program, inputs),
            arrived=now,
            deadline=deadline,
            future=Answer(),
        )
        with self._lock:
            if self._closing:
                raise ShuttingDownError(f"model {self.name} is shutting down; ask another server")
            if len(self._queue) >= self._config.max_queue_size:
                raise OverloadedError(
                    f"model {self.name}: {len(self._queue)} requests are waiting, which is the "
                    "limit; try again later",
                    retry_after_seconds=self._retry_after(),
                )
            self._queue.add(request)
            self._changed.notify_all()
        request.future.add_done_callback(partial(self._forget, request))
        self._report()
        return request.future

    def _retry_after(self) -> float:
        """About when half of the queue will be done. The lock is held."""
        batches = len(self._queue) / len(self._queue.candidates()) / 2
        low, high = _RETRY_BOUNDS
        return min(max(batches * self._mean_run_seconds, low), high)

    def _forget(self, request: Request, future: Future[Outputs]) -> None:
        """Takes a cancelled request out of the queue."""
        if not future.cancelled():
            return
        with self._lock:
            waiting = self._queue.remove(request)
            self._changed.notify_all()
        if waiting:  # else the engine's thread has it and notices by itself
            future.set_running_or_notify_cancel()
            self._observer.failed("cancelled")
            self._report()

    def _report(self) -> None:
        self._observer.queue_depth(len(self._queue), self._running)

    # The engine's thread.

    def _run(self) -> None:
        while True:
            with self._lock:
                expired, batch = self._next()
                self._running = len(batch)
            if not expired and not batch:
                return
            for request in expired:
                self._refuse(
                    request, DeadlineError(f"model {self.name}: the deadline passed in the queue")
                )
            self._report()
            if batch:
                self._answer(batch)

    def _next(self) -> tuple[list[Request], list[Request]]:
        """Waits for requests past their deadline, or for a batch; neither: the engine closes."""
        while True:
            now = self._clock()
            expired = self._queue.take_expired(now)
            if expired:
                return expired, []
            patience = None
            if len(self._queue):
                batch = self._queue.candidates()
                patience = 0.0 if self._closing else self._queue.patience(batch, now)
                if patience <= 0:
                    self._queue.take(batch)
                    return [], batch
            elif self._closing:
                return [], []
            self._changed.wait(self._queue.wake_after(patience, now))

    def _refuse(self, request: Request, error: ServingError) -> None:
        """Fails a request that was not started."""
        if request.future.set_running_or_notify_cancel():
            self._observer.failed(error.reason)
            request.future.set_exception(error)
        else:
            self._observer.failed("cancelled")

    def _answer(self, batch: list[Request]) -> None:
        """Computes a batch; whatever happens, every future is done afterwards."""
        live = self._started(batch)
        outcomes = self._outcomes(live) if live else []
        # Before the first caller has its answer: its next request is not one that waited meanwhile.
        with self._lock:
            self._running = 0
            self._queue.ended(batch, self._clock())
        self._report()
        for request, outcome in zip(live, outcomes, strict=True):
            if isinstance(outcome, ServingError):
                self._observer.failed(outcome.reason)
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)

    def _started(self, batch: list[Request]) -> list[Request]:
        """The requests that can no longer be cancelled."""
        start = self._clock()
        live = []
        for request in batch:
            if request.future.set_running_or_notify_cancel():
                self._observer.queued(start - request.arrived)
                live.append(request)
            else:
                self._observer.failed("cancelled")
        return live

    def _outcomes(self, live: list[Request]) -> Sequence[Outputs | ServingError]:
        """Outputs or error of each request."""
        try:
            return self._compute(live)
        except RunAbandonedError:
            return [self._abandonment(request) for request in live]
        except Exception as cause:  # noqa: BLE001 - the engine outlives whatever a program raises
            if len(live) > 1 and not concerns_weights(cause):
                # The inputs of some request failed them all: each is computed by itself.
                return [outcome for request in live for outcome in self._outcomes([request])]
            where = f"model {self.name}"
            failure = run_failure(where, cause, when_full="send fewer rows", log=_log)
            return [failure.error() for _ in live]

    def _abandonment(self, request: Request) -> ServingError:
        if request.future.unwanted:
            return CancelledRequestError(f"model {self.name}: the request was cancelled")
        return DeadlineError(f"model {self.name}: the deadline passed before the graph had run")

    def _compute(self, live: list[Request]) -> list[Outputs]:
        """One run over the requests' rows; each gets its rows of the outputs, as views."""

        def abandoned() -> bool:
            now = self._clock()
            return all(request.abandoned(now) for request in live)

        began, waited = self._clock(), self._load_seconds()
        with torch.inference_mode():
            inputs = {
                spec.name: _joined([request.inputs[spec.name] for request in live], self._device)
                for spec in self.program.inputs
            }
            results = self._model.run(inputs, abandoned=abandoned)
            outputs = {name: t.cpu() for name, t in results.items()}
        waited = self._load_seconds() - waited
        seconds = max(0.0, self._clock() - began - waited)
        rows = sum(request.rows for request in live)
        self._observer.ran(seconds, rows=rows, requests=len(live))
        self._mean_run_seconds += _SMOOTHING * (seconds - self._mean_run_seconds)
        if len(live) == 1:
            return [outputs]
        ends = list(itertools.accumulate(request.rows for request in live))
        return [
            {name: tensor[start:end] for name, tensor in outputs.items()}
            for start, end in itertools.pairwise([0, *ends])
        ]


def _joined(tensors: list[Tensor], device: torch.device) -> Tensor:
    return (tensors[0] if len(tensors) == 1 else torch.cat(tensors)).to(device)
