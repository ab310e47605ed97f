"""The decoder engine: one thread owns model and cache, everyone else submits and cancels."""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from tersor.bundle.program import DecoderProgram
from tersor.models.tokenizer import Tokenizer
from tersor.runtime.config import EngineConfig
from tersor.runtime.engine.admission import Admission
from tersor.runtime.engine.cache import PagedCache, resolve_kv_cache_dtype
from tersor.runtime.engine.estimate import Rates
from tersor.runtime.engine.observer import EngineMetrics
from tersor.runtime.engine.runner import Model, Runner
from tersor.runtime.engine.scheduler import Scheduler
from tersor.runtime.engine.sequence import Sequence
from tersor.runtime.engine.stepper import Stepper
from tersor.runtime.engine.types import EventSink, GenerationRequest, SamplingParams
from tersor.runtime.errors import (
    CancelledRequestError,
    DeadlineError,
    InternalError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
)
from tersor.runtime.failures import incident

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RequestHandle:
    """A submitted request. `cancel` is safe from any thread and after the end."""

    _sequence: Sequence

    @property
    def request_id(self) -> str:
        """Unique within the process's engine of this model."""
        return self._sequence.request_id

    def cancel(self) -> None:
        """Ends the request within one step: its pages are freed, `Failed` is its last event."""
        self._sequence.cancelled = True


class DecoderEngine:
    """Continuous batching for one decoder.

    Requests are served first come first served. Each step computes at most one chunk of prompt
    tokens, so that running answers do not stall, and then one token of every running answer.

    Args:
        name: of the model, in metrics, request ids and messages.
        program: the decoder's configuration.
        model: computes it; used on the engine's thread only.
        tokenizer: of the bundle.
        defaults: sampling parameters of requests that name none.
        config: limits.
        metrics: gives the engine its observer.
        device: of model and cache.
        activations: dtype of the residual stream; of keys and values too, if `config` says auto.
        clock: seconds; deadlines are on it.
        load_seconds: seconds that passes waited for weights so far, as the weights count them.
        seeds: gives a seed to requests that have none.
        threaded: False leaves it to the caller to call `step`.

    Raises:
        OutOfMemoryError: `kv_cache_bytes` does not hold a single page.
    """

    def __init__(
        self,
        *,
        name: str,
        program: DecoderProgram,
        model: Model,
        tokenizer: Tokenizer,
        defaults: SamplingParams,
        config: EngineConfig,
        metrics: EngineMetrics,
        device: torch.device,
        activations: torch.dtype,
        clock: Callable[[], float] = time.monotonic,
        load_seconds: Callable[[], float] = lambda: 0.0,
        seeds: Callable[[], int] = lambda: secrets.randbits(64),
        threaded: bool = True,
    ) -> None:
        """Allocates the KV cache and starts the engine's thread."""
        self.name = name
        self.program = program
        self.defaults = defaults
        self._config = config
        self._clock = clock
        self._observer = metrics.engine_observer(name)
        self._rates = Rates()
        self._numbers = itertools.count()
        self._cache = PagedCache(
            program,
            page_tokens=config.kv_page_tokens,
            cache_bytes=config.kv_cache_bytes,
            max_sequences=config.max_batch_size,
            dtype=resolve_kv_cache_dtype(config.kv_cache_dtype, activations),
            device=device,
        )
        self._admission = Admission(program, tokenizer, self._cache, seeds=seeds)
        self._scheduler = Scheduler(
            self._cache,
            max_batch_size=config.max_batch_size,
            chunk_tokens=config.prefill_chunk_tokens,
        )
        runner = Runner(model, self._cache, device=device, clock=clock, load_seconds=load_seconds)
        self._stepper = self._make_stepper(runner)
        self._wake = threading.Condition()  # guards the inbox and what follows
        self._inbox: list[Sequence] = []
        self._drain_limit: float | None = None  # set by close: no more requests
        self._thread: threading.Thread | None = None
        self._stepper.publish()
        if threaded:
            self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
            self._thread.start()

    @property
    def kv_pages_in_use(self) -> int:
        """Pages held by running requests."""
        return self._cache.pool.used

    @property
    def kv_pages_total(self) -> int:
        """Pages of the pool."""
        return self._cache.pool.total

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._inbox) + len(self._scheduler.waiting)

    def submit(self, request: GenerationRequest, sink: EventSink) -> RequestHandle:
        """Validates and queues a request; safe from any thread.

        Args:
            request: what to generate; a deadline is on the engine's clock.
            sink: receives the events on the engine's thread, the last one `Finished` or `Failed`;
                must not block. If it raises, its request ends and it is not called again.

        Raises:
            InvalidRequestError: the request is wrong.
            DeadlineError: its deadline has passed.
            OverloadedError: the queue is full, or too long for the deadline.
            OutOfMemoryError: the KV cache can never hold it.
            ShuttingDownError: the engine is closing.
        """
        try:
            return self._submit(request, sink)
        except ServingError as error:
            self._observer.failed(error.reason)
            raise

    def step(self) -> bool:
        """Does one round of work on the caller's thread: for engines that are not `threaded`.

        Returns whether there is more to do.
        """
        with self._wake:
            arrived, self._inbox = self._inbox, []
            for sequence in arrived:
                self._scheduler.add(sequence)
        now = self._clock()
        for sequence in (*self._scheduler.waiting, *self._scheduler.running):
            if sequence.cancelled:
                self._stepper.fail(sequence, CancelledRequestError("the caller cancelled it"))
            elif sequence.deadline is not None and now >= sequence.deadline:
                self._stepper.fail(sequence, _expired(sequence))
        self._stepper.step()
        return self._scheduler.busy

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuses new requests, gives running and waiting ones `drain_seconds`, fails the rest.

        Returns when the engine's thread has ended. Safe to call again, from any thread but the
        engine's.
        """
        with self._wake:
            limit = self._clock() + drain_seconds
            self._drain_limit = (
                limit if self._drain_limit is None else min(self._drain_limit, limit)
            )
            self._wake.notify_all()
        if self._thread is None:
            self._run()
        else:
            self._thread.join()

    def check_integrity(self) -> None:
        """Raises AssertionError unless pages, queue and batch agree; for tests, between steps."""
        self._scheduler.check_integrity()

    def _make_stepper(self, runner: Runner) -> Stepper:
        return Stepper(
            name=self.name,
            scheduler=self._scheduler,
            runner=runner,
            rates=self._rates,
            observer=self._observer,
            pool=self._cache.pool,
            clock=self._clock,
        )

    def _submit(self, request: GenerationRequest, sink: EventSink) -> RequestHandle:
        self._check_open()  # before any work is spent on the request
        now = self._clock()
        sequence = self._admission.sequence(
            request, sink, request_id=f"{self.name}-{next(self._numbers)}", now=now
        )
        if sequence.deadline is not None and now >= sequence.deadline:
            raise _expired(sequence)
        with self._wake:
            self._check_open()
            self._check_load(sequence, now)
            self._inbox.append(sequence)
            self._wake.notify_all()
        return RequestHandle(sequence)

    def _check_open(self) -> None:
        if self._drain_limit is not None:
            raise ShuttingDownError(f"model {self.name} is shutting down; ask another server")

    def _check_load(self, sequence: Sequence, now: float) -> None:
        """Raises OverloadedError if there is no place, or none in time."""
        config, scheduler = self._config, self._scheduler
        running, waiting = self.running, self.waiting
        if running + waiting >= config.max_batch_size + config.max_queue_size:
            retry = self._rates.retry_seconds(config.max_batch_size)
            raise OverloadedError(
                f"model {self.name} has {running} requests running and {waiting} waiting, its "
                f"limit; try again in {retry:.2g} s",
                retry_after_seconds=retry,
            )
        if sequence.deadline is None or not (running or waiting):
            return  # an idle engine tries, or rates that are too slow would never be corrected
        prompts = scheduler.waiting_prompt_tokens + sum(s.prompt_tokens for s in self._inbox)
        seconds = self._rates.first_token_seconds(
            ahead=waiting,
            prompt_tokens=prompts + sequence.prompt_tokens,
            running=running,
            max_batch_size=config.max_batch_size,
        )
        if seconds is not None and now + seconds > sequence.deadline:
            raise OverloadedError(
                f"the first token is expected in {seconds:.2g} s, but the deadline is in "
                f"{sequence.deadline - now:.2g} s; allow more time or ask another server",
                retry_after_seconds=self._rates.retry_seconds(config.max_batch_size),
            )

    def _run(self) -> None:
        """Steps until closed and drained."""
        while True:
            with self._wake:
                while not (self._inbox or self._scheduler.busy or self._drain_limit is not None):
                    self._wake.wait()
                limit = self._drain_limit
                drained = not (self._inbox or self._scheduler.busy)
                if limit is not None and (drained or self._clock() >= limit):
                    break
            try:
                self.step()
            except Exception as cause:  # noqa: BLE001 - requests must hear of it, others be served
                message = incident(f"model {self.name}: a step failed", cause, _log)
                self._fail_all(partial(InternalError, message))
        self._fail_all(lambda: ShuttingDownError(f"model {self.name} was shut down"))

    def _fail_all(self, error: Callable[[], ServingError]) -> None:
        with self._wake:
            arrived, self._inbox = self._inbox, []
        for sequence in arrived:
            self._scheduler.add(sequence)
        for sequence in (*self._scheduler.waiting, *self._scheduler.running):
            self._stepper.fail(sequence, error())


def _expired(sequence: Sequence) -> DeadlineError:
    count = sequence.answer.count
    return DeadlineError(f"the deadline passed after {count} tokens of the answer")
