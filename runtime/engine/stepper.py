"""One round of the engine: admit, prefill, decode, tell the sinks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor

from tersor.models.errors import TokenizerError
from tersor.runtime.engine.answer import Ending
from tersor.runtime.engine.estimate import Rates
from tersor.runtime.engine.observer import EngineObserver
from tersor.runtime.engine.pages import PagePool
from tersor.runtime.engine.runner import Pass, Runner
from tersor.runtime.engine.sampling import SampleFailure, sample
from tersor.runtime.engine.scheduler import Scheduler
from tersor.runtime.engine.sequence import Phase
from tersor.runtime.engine.sequence import Sequence as Generation
from tersor.runtime.engine.types import Event, Failed, Finished
from tersor.runtime.errors import InternalError, ServingError
from tersor.runtime.failures import Failure, concerns_weights, incident, run_failure

_log = logging.getLogger(__name__)

_WHEN_FULL: Final = "lower max_batch_size, prefill_chunk_tokens or kv_cache_bytes"


class Stepper:
    """Moves sequences on; used by the engine's thread only."""

    def __init__(
        self,
        *,
        name: str,
        scheduler: Scheduler,
        runner: Runner,
        rates: Rates,
        observer: EngineObserver,
        pool: PagePool,
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._scheduler = scheduler
        self._runner = runner
        self._rates = rates
        self._observer = observer
        self._pool = pool
        self._clock = clock
        self._published: tuple[int, int, int] | None = None

    def step(self) -> None:
        """One round. An exception of a pass or a sink ends the sequences it concerns."""
        for sequence in self._scheduler.admit():
            if sequence.timeline.admitted is None:
                now = sequence.timeline.admitted = self._clock()
                self._observer.queued(now - sequence.timeline.submitted)
        for sequence, count in self._scheduler.next_chunks():
            if sequence.phase is Phase.PREFILL:  # an earlier chunk's failure may have ended it
                self._prefill(sequence, count)
        batch, preempted = self._scheduler.next_batch()
        for _ in preempted:
            self._observer.preempted()
        if batch:
            self._decode(batch)
        self.publish()

    def fail(self, sequence: Generation, error: ServingError) -> None:
        """Ends a sequence without an answer."""
        self._scheduler.remove(sequence)
        self._observer.failed(error.reason)
        self.publish()
        self._tell(sequence, Failed(error=error))

    def publish(self) -> None:
        """Tells the observer pages and queue, if they changed."""
        waiting, running = len(self._scheduler.waiting), len(self._scheduler.running)
        state = (self._pool.used, waiting, running)
        if state != self._published:
            self._published = state
            self._observer.kv_usage(self._pool.used, self._pool.total)
            self._observer.queue_depth(waiting, running)

    def _prefill(self, sequence: Generation, count: int) -> None:
        try:
            result = self._runner.prefill(sequence, count)
        except Exception as cause:  # noqa: BLE001 - a pass may fail in any way, the engine stays up
            self._failed([sequence], cause)
            return
        self._observer.prefill(result.seconds, count)
        self._rates.prefilled(result.seconds, count)
        self._waited([sequence], result)
        if sequence.computed == sequence.prompt_tokens:
            sequence.phase = Phase.DECODE
            if len(sequence.tokens) == sequence.prompt_tokens:
                self._choose([sequence], result.logits)

    def _decode(self, batch: Sequence[Generation]) -> None:
        begin = self._clock()
        try:
            result = self._runner.decode(batch)
        except Exception as cause:  # noqa: BLE001 - as above
            self._decode_failed(batch, cause)
            return
        self._waited(batch, result)
        rows = [row for row, sequence in enumerate(batch) if not _replayed(sequence)]
        if len(rows) == len(batch):
            self._choose(batch, result.logits)
        elif rows:
            self._choose([batch[row] for row in rows], result.logits[rows])
        seconds = max(0.0, self._clock() - begin - result.waited)
        self._observer.decode_step(seconds, len(batch))
        self._rates.decoded(seconds)

    def _decode_failed(self, batch: Sequence[Generation], cause: Exception) -> None:
        """Finds out whose fault it was: a pass writes the same keys and values when run again."""
        if len(batch) == 1 or concerns_weights(cause):
            self._failed(batch, cause)
            return
        for sequence in batch:
            self._decode([sequence])

    def _failed(self, batch: Sequence[Generation], cause: Exception) -> None:
        """Ends the sequences that a pass failed for."""
        failure = run_failure(f"model {self._name}", cause, when_full=_WHEN_FULL, log=_log)
        if failure.kind is not InternalError:
            _log.warning("engine: %s", failure.message)
        for sequence in batch:
            self.fail(sequence, failure.error())
        if concerns_weights(cause):  # the others would wait for the same weights, one by one
            self._fail_uncomputed(failure)

    def _fail_uncomputed(self, failure: Failure) -> None:
        prefilling = [s for s in self._scheduler.running if s.phase is Phase.PREFILL]
        for sequence in (*prefilling, *self._scheduler.waiting):
            self.fail(sequence, failure.error())

    def _waited(self, batch: Sequence[Generation], result: Pass) -> None:
        if result.waited > 0.0:
            for sequence in batch:
                if sequence.timeline.first_token is None:
                    sequence.timeline.load_prefill += result.waited
                else:
                    sequence.timeline.load_decode += result.waited

    def _choose(self, batch: Sequence[Generation], logits: Tensor) -> None:
        """Samples the next token of each sequence and passes on what it led to."""
        outcomes = sample(logits, [sequence.sampler for sequence in batch])
        now = self._clock()
        for sequence, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, SampleFailure):
                message = incident(f"model {self._name}: {outcome.message}", None, _log)
                self.fail(sequence, InternalError(message))
                continue
            sequence.tokens.append(outcome.token_id)
            self._time_token(sequence, now)
            try:
                ending = sequence.answer.push(outcome)
            except TokenizerError as cause:  # of these tokens; the neighbours' may be fine
                self.fail(sequence, InternalError(f"model {self._name}: {cause}"))
                continue
            delta = sequence.answer.take(everything=ending is not None)
            if delta is not None and not self._tell(sequence, delta):
                continue
            if ending is not None:
                self._finish(sequence, ending, now)

    def _time_token(self, sequence: Generation, now: float) -> None:
        times = sequence.timeline
        if times.last_token is None:
            times.first_token = now
            self._observer.first_token(now - times.submitted, cold=times.load_prefill > 0.0)
        else:
            self._observer.inter_token(now - times.last_token)
        times.last_token = now

    def _finish(self, sequence: Generation, ending: Ending, now: float) -> None:
        self._scheduler.remove(sequence)  # before the caller hears of it: the pages are free then
        usage = sequence.usage(now)
        self._rates.completed(usage.completion_tokens)
        self._observer.finished(ending.reason, usage)
        self.publish()
        self._tell(
            sequence,
            Finished(
                reason=ending.reason,
                stop_match=ending.match,
                cumulative_logprob=sequence.answer.cumulative_logprob,
                usage=usage,
            ),
        )

    def _tell(self, sequence: Generation, event: Event) -> bool:
        """Calls the sink; a sink that raises ends its sequence and no other."""
        try:
            sequence.sink(event)
        except Exception:  # noqa: BLE001 - a sink is the caller's code
            _log.exception("engine %s: the sink of %s failed", self._name, sequence.request_id)
            if sequence.phase is not Phase.DONE:
                self._scheduler.remove(sequence)
                self._observer.failed(InternalError.reason)
            return False
        return True


def _replayed(sequence: Generation) -> bool:
    """Whether the pass just done recomputed a token that was answered with before."""
    return sequence.computed < len(sequence.tokens)
