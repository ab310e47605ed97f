"""Per-model views of the metrics with every label bound once, so that a hot path only observes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from tersor.runtime.engine.types import FinishReason, Usage
from tersor.runtime.errors import ServingError
from tersor.runtime.metrics.families import (
    LOAD_PHASES,
    LOAD_STEPS,
    TIERS,
    CacheFamilies,
    GenerationFamilies,
    GraphFamilies,
    RequestFamilies,
    WeightFamilies,
)

if TYPE_CHECKING:
    from prometheus_client import Counter


def failure_reasons() -> tuple[str, ...]:
    """Every value of the `reason` label of failures: one for each class of serving error."""

    def walk(cls: type[ServingError]) -> Iterator[str]:
        yield cls.reason
        for sub in cls.__subclasses__():
            yield from walk(sub)

    return tuple(sorted(set(walk(ServingError))))


class _Failures:
    """The failure counter of one model, by reason."""

    def __init__(self, families: RequestFamilies, model: str) -> None:
        self._by_reason = {
            reason: families.failures.labels(model, reason) for reason in failure_reasons()
        }

    def count(self, reason: str) -> None:
        # A reason outside the taxonomy is a defect of ours, and must not widen the label.
        self._by_reason.get(reason, self._by_reason["internal"]).inc()


class EngineMetrics:
    """What a decoder engine reports; implements `runtime.engine.observer.EngineObserver`."""

    def __init__(
        self,
        requests: RequestFamilies,
        families: GenerationFamilies,
        cache: CacheFamilies,
        model: str,
    ) -> None:
        self._failures = _Failures(requests, model)
        self._queue = requests.queue.labels(model)
        self._running = requests.running.labels(model)
        self._waiting = requests.waiting.labels(model)
        self._first_token = {
            cold: families.first_token.labels(model, str(cold).lower()) for cold in (False, True)
        }
        self._inter_token = families.inter_token.labels(model)
        self._prefill = families.prefill.labels(model)
        self._prefill_tokens = families.prefill_tokens.labels(model)
        self._decode_step = families.decode_step.labels(model)
        self._decode_batch = families.decode_batch.labels(model)
        self._prompt_tokens = families.prompt_tokens.labels(model)
        self._generated_tokens = families.generated_tokens.labels(model)
        self._request_prompt_tokens = families.request_prompt_tokens.labels(model)
        self._request_generated_tokens = families.request_generated_tokens.labels(model)
        self._finished = {
            reason: families.finished.labels(model, reason.value) for reason in FinishReason
        }
        self._preemptions = cache.preemptions.labels(model)
        self._kv_used = cache.kv_used.labels(model)
        self._kv_capacity = cache.kv_capacity.labels(model)
        self._kv_usage = cache.kv_usage.labels(model)

    def queued(self, seconds: float) -> None:
        """A request left the queue after `seconds`."""
        self._queue.observe(seconds)

    def first_token(self, seconds: float, *, cold: bool = False) -> None:
        """A request's first token came `seconds` after it was submitted.

        A `cold` one waited for weights: a series of its own, so that loading after a start or an
        eviction does not poison the latency objective.
        """
        self._first_token[cold].observe(seconds)

    def inter_token(self, seconds: float) -> None:
        """Time between two tokens of one request."""
        self._inter_token.observe(seconds)

    def prefill(self, seconds: float, tokens: int) -> None:
        """A prompt of `tokens` tokens was computed in `seconds`."""
        self._prefill.observe(seconds)
        self._prefill_tokens.inc(tokens)

    def decode_step(self, seconds: float, batch: int) -> None:
        """One decode step over `batch` sequences."""
        self._decode_step.observe(seconds)
        self._decode_batch.observe(batch)

    def finished(self, reason: FinishReason, usage: Usage) -> None:
        """A generation ended well."""
        self._finished[reason].inc()
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._generated_tokens.inc(usage.completion_tokens)
        self._request_prompt_tokens.observe(usage.prompt_tokens)
        self._request_generated_tokens.observe(usage.completion_tokens)

    def failed(self, reason: str) -> None:
        """A request was refused or failed; `reason` is `ServingError.reason`."""
        self._failures.count(reason)

    def preempted(self) -> None:
        """A running request gave up its pages to an older one."""
        self._preemptions.inc()

    def kv_usage(self, used: int, total: int) -> None:
        """Pages held by requests, of all."""
        self._kv_used.set(used)
        self._kv_capacity.set(total)
        self._kv_usage.set(used / total if total else 0.0)

    def queue_depth(self, waiting: int, running: int) -> None:
        """Requests in the queue and in the batch now."""
        self._waiting.set(waiting)
        self._running.set(running)


class GraphMetrics:
    """What a graph engine reports."""

    def __init__(self, requests: RequestFamilies, families: GraphFamilies, model: str) -> None:
        self._failures = _Failures(requests, model)
        self._queue = requests.queue.labels(model)
        self._running = requests.running.labels(model)
        self._waiting = requests.waiting.labels(model)
        self._run = families.run.labels(model)
        self._rows = families.rows.labels(model)
        self._batch_requests = families.batch_requests.labels(model)

    def queued(self, seconds: float) -> None:
        """A request left the queue after `seconds`."""
        self._queue.observe(seconds)

    def ran(self, seconds: float, *, rows: int, requests: int) -> None:
        """One run over `rows` rows of `requests` requests."""
        self._run.observe(seconds)
        self._rows.observe(rows)
        self._batch_requests.observe(requests)

    def failed(self, reason: str) -> None:
        """A request was refused or failed; `reason` is `ServingError.reason`."""
        self._failures.count(reason)

    def queue_depth(self, waiting: int, running: int) -> None:
        """Requests in the queue and in the batch now."""
        self._waiting.set(waiting)
        self._running.set(running)


class WeightMetrics:
    """What residency reports of one model; implements `runtime.residency.WeightObserver`."""

    def __init__(self, families: WeightFamilies, model: str) -> None:
        self._load = {step: families.load.labels(model, step) for step in LOAD_STEPS}
        self._phase = {phase: families.phase.labels(model, phase) for phase in LOAD_PHASES}
        self._wait = families.wait.labels(model)
        self._load_failures = families.load_failures.labels(model)
        self._bytes = {tier: families.bytes.labels(model, tier) for tier in TIERS}
        self._bytes_read = families.bytes_read.labels(model)
        self._evictions = {
            tier: families.evictions.labels(model, tier) for tier in ("host", "device")
        }
        self._groups_resident = families.groups_resident.labels(model)
        self._groups = families.groups.labels(model)

    def loaded(self, step: str, seconds: float, phases: Mapping[str, float]) -> None:
        """A load step took `seconds`, of which `phases` are a partition."""
        self._load[step].observe(seconds)
        for phase, part in phases.items():
            self._phase[phase].observe(part)

    def load_failed(self) -> None:
        """A group load failed."""
        self._load_failures.inc()

    def waited(self, seconds: float) -> None:
        """A computation stood still for weights."""
        self._wait.observe(seconds)

    def read(self, stored_bytes: int) -> None:
        """Stored bytes came from disk."""
        self._bytes_read.inc(stored_bytes)

    def evicted(self, tier: str) -> None:
        """A group left `tier` to make room."""
        self._evictions[tier].inc()

    def holds(self, tier: str, count: int) -> None:
        """Bytes of this model in `tier` now."""
        self._bytes[tier].set(count)

    def groups(self, *, resident: int, total: int) -> None:
        """Groups on the device now, and of the bundle."""
        self._groups_resident.set(resident)
        self._groups.set(total)


class RpcMetrics:
    """Calls of one method on one model. The status label is one of gRPC's seventeen names."""

    def __init__(self, families: RequestFamilies, model: str, method: str) -> None:
        self._duration = families.duration.labels(model, method)
        self._of_status: Callable[[str], Counter] = lambda status: families.requests.labels(
            model, method, status
        )
        self._by_status = {"OK": self._of_status("OK")}

    def finished(self, status: str, seconds: float) -> None:
        """A call ended with gRPC `status` ("OK", "INVALID_ARGUMENT", …) after `seconds`."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status.setdefault(status, self._of_status(status))
        counter.inc()
        self._duration.observe(seconds)
