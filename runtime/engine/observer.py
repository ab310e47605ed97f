"""What the decoder engine tells about itself; the metrics of the process implement it."""

from __future__ import annotations

from typing import Protocol

from tersor.runtime.engine.types import FinishReason, Usage


class EngineObserver(Protocol):
    """Receives one engine's measurements, in seconds, tokens and pages.

    Called on the engine's thread, and `failed` also on submitting threads. Must not block and must
    not raise.
    """

    def queued(self, seconds: float) -> None:
        """A request left the queue for the first time, `seconds` after it was submitted."""

    def first_token(self, seconds: float, *, cold: bool = False) -> None:
        """A request's first token came `seconds` after `submit`; `cold`: it waited for weights."""

    def inter_token(self, seconds: float) -> None:
        """A request produced a later token, `seconds` after the one before."""

    def prefill(self, seconds: float, tokens: int) -> None:
        """One forward pass over `tokens` prompt tokens of one sequence."""

    def decode_step(self, seconds: float, batch: int) -> None:
        """One forward pass and sampling step over `batch` sequences."""

    def finished(self, reason: FinishReason, usage: Usage) -> None:
        """A request ended with an answer."""

    def failed(self, reason: str) -> None:
        """A request was refused, or ended without an answer; `reason` is `ServingError.reason`."""

    def preempted(self) -> None:
        """A running request gave up its pages to an older one and will be recomputed."""

    def kv_usage(self, used: int, total: int) -> None:
        """Pages in use and pages that exist, after they changed."""

    def queue_depth(self, waiting: int, running: int) -> None:
        """Requests waiting and running, after they changed."""


class EngineMetrics(Protocol):
    """Where an engine gets its observer from: the metrics of the process."""

    def engine_observer(self, model: str) -> EngineObserver:
        """The observer of the engine that serves `model`."""
        ...
