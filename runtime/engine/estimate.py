"""Measured rates, and what they say about a request that has not begun."""

from __future__ import annotations

# Weight of the newest measurement. A slow one, such as a first pass that compiles kernels, is soon
# forgotten: who is refused for a rate that is too slow cannot correct it.
_WEIGHT_SLOWER, _WEIGHT_FASTER = 0.1, 0.5
_WEIGHT_LENGTH = 0.2
_RETRY_UNKNOWN_SECONDS = 1.0  # before anything was measured
_RETRY_MIN_SECONDS, _RETRY_MAX_SECONDS = 0.05, 60.0


class Rates:
    """Moving averages of one engine. Written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self._step_seconds: float | None = None
        self._token_seconds: float | None = None  # of prefill
        self._completion_tokens: float | None = None

    def prefilled(self, seconds: float, tokens: int) -> None:
        """One prefill pass, without the time it waited for weights."""
        self._token_seconds = _rate(self._token_seconds, seconds / tokens)

    def decoded(self, seconds: float) -> None:
        """One decode step, without the time it waited for weights."""
        self._step_seconds = _rate(self._step_seconds, seconds)

    def completed(self, tokens: int) -> None:
        """A sequence left with `tokens` generated."""
        old = tokens if self._completion_tokens is None else self._completion_tokens
        self._completion_tokens = old + _WEIGHT_LENGTH * (tokens - old)

    def first_token_seconds(
        self, *, ahead: int, prompt_tokens: int, running: int, max_batch_size: int
    ) -> float | None:
        """Seconds until a new request would have its first token; None before anything is known.

        Args:
            ahead: requests in the queue before it.
            prompt_tokens: of those requests and of its own.
            running: sequences in the batch.
            max_batch_size: sequences that fit it.
        """
        if self._token_seconds is None:
            return None
        seconds = prompt_tokens * self._token_seconds
        turns = ahead + 1 - (max_batch_size - running)  # sequences that must leave before
        if turns > 0:
            turnover = self._turnover_seconds(max_batch_size)
            if turnover is None:
                return None
            seconds += turns * turnover
        return seconds

    def retry_seconds(self, max_batch_size: int) -> float:
        """Seconds until a place in a full queue is likely to be free."""
        turnover = self._turnover_seconds(max_batch_size)
        if turnover is None:
            return _RETRY_UNKNOWN_SECONDS
        return min(max(turnover, _RETRY_MIN_SECONDS), _RETRY_MAX_SECONDS)

    def _turnover_seconds(self, max_batch_size: int) -> float | None:
        """Seconds between two sequences leaving a full batch."""
        if self._step_seconds is None or self._completion_tokens is None:
            return None
        return self._completion_tokens * self._step_seconds / max_batch_size


def _rate(old: float | None, new: float) -> float:
    if old is None:
        return new
    return old + (_WEIGHT_SLOWER if new > old else _WEIGHT_FASTER) * (new - old)
