"""One request on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tersor.kernels.attention import Span
from tersor.runtime.engine.answer import Answer
from tersor.runtime.engine.pages import PageTable
from tersor.runtime.engine.sampling import SamplerState
from tersor.runtime.engine.types import EventSink, Usage


class Phase(Enum):
    """Where a sequence is; pages are held in PREFILL and DECODE only."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"


@dataclass(slots=True, kw_only=True)
class Timeline:
    """When things happened, on the engine's clock."""

    submitted: float
    admitted: float | None = None  # first time
    first_token: float | None = None
    last_token: float | None = None
    load_prefill: float = 0.0  # seconds that passes waited for weights, before the first token
    load_decode: float = 0.0  # and after it


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """A request's state, owned by the engine's thread; `cancelled` is set from any thread."""

    request_id: str
    prompt_tokens: int
    max_tokens: int  # clipped by the context
    tokens: list[int]  # prompt, then the answer so far
    sampler: SamplerState
    answer: Answer
    sink: EventSink
    deadline: float | None
    timeline: Timeline
    arrival: int = 0  # order in the queue: the oldest is served first and preempted last
    phase: Phase = Phase.WAITING
    computed: int = 0  # tokens whose keys and values are in the cache
    table: PageTable | None = None
    cancelled: bool = False

    def span(self, queries: int) -> Span:
        """The part of this sequence in a pass over its next `queries` tokens."""
        assert self.table is not None  # only sequences with pages are computed
        return Span(
            pages=self.table.pages,
            queries=queries,
            context=self.computed + queries,
            contiguous=self.table.contiguous,
        )

    def usage(self, now: float) -> Usage:
        """What the request took; queue, load, prefill and decode partition the time until `now`."""
        times = self.timeline
        admitted = now if times.admitted is None else times.admitted
        first = now if times.first_token is None else times.first_token
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.answer.count,
            queue_seconds=admitted - times.submitted,
            load_seconds=times.load_prefill + times.load_decode,
            prefill_seconds=max(0.0, first - admitted - times.load_prefill),
            decode_seconds=max(0.0, now - first - times.load_decode),
            time_to_first_token_seconds=first - times.submitted,
        )
