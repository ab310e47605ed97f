"""What sampling parameters may be."""

from __future__ import annotations

import math

from tersor.runtime.engine.types import SamplingParams
from tersor.runtime.errors import InvalidRequestError

MAX_LOGPROBS = 64  # alternatives a token: they are sorted and sent for every token
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 1024  # of one stop string: as much text may be held back
_SEED_MIN, _SEED_MAX = -(1 << 63), (1 << 64) - 1  # any signed or unsigned 64-bit number


def validate_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Checks every field.

    Raises:
        InvalidRequestError: names the field, what it got and what is allowed.
    """
    _integer("max_tokens", sampling.max_tokens, low=1)
    _integer("min_tokens", sampling.min_tokens, low=0, high=sampling.max_tokens, limit="max_tokens")
    _number("temperature", sampling.temperature, low=0.0)
    _integer("top_k", sampling.top_k, low=0)
    _number("top_p", sampling.top_p, low=0.0, high=1.0, low_allowed=False)
    _number("min_p", sampling.min_p, low=0.0, high=1.0)
    _number("repetition_penalty", sampling.repetition_penalty, low=0.0, low_allowed=False)
    _number("presence_penalty", sampling.presence_penalty, low=-2.0, high=2.0)
    _number("frequency_penalty", sampling.frequency_penalty, low=-2.0, high=2.0)
    if sampling.seed is not None:
        _integer("seed", sampling.seed, low=_SEED_MIN, high=_SEED_MAX)
    if sampling.logprobs is not None:
        _integer("logprobs", sampling.logprobs, low=0, high=MAX_LOGPROBS)
    _stop_strings(sampling.stop)
    for token_id in sampling.stop_token_ids:
        _integer("stop_token_ids", token_id, low=0, high=vocab_size - 1)


def _integer(
    name: str, value: object, *, low: int, high: int | None = None, limit: str = ""
) -> None:
    # bool is an int to Python, but never what the caller of a count meant.
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and low <= value and (high is None or value <= high):  # type: ignore[operator]
        return
    allowed = f"{low} or more" if high is None else f"{low} to {high}"
    suffix = f" ({limit})" if limit else ""
    raise InvalidRequestError(f"{name} is {value!r}, allowed is a whole number, {allowed}{suffix}")


def _number(
    name: str, value: object, *, low: float, high: float | None = None, low_allowed: bool = True
) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        above = value >= low if low_allowed else value > low
        if above and (high is None or value <= high):
            return
    start = f"{low:g} or more" if low_allowed else f"more than {low:g}"
    if high is not None:
        start = f"{low:g} to {high:g}" if low_allowed else f"more than {low:g}, at most {high:g}"
    raise InvalidRequestError(f"{name} is {value!r}, allowed is a finite number, {start}")


def _stop_strings(stop: tuple[str, ...]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequestError(
            f"stop has {len(stop)} strings, allowed are at most {MAX_STOP_STRINGS}"
        )
    for text in stop:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
            shown = repr(text) if len(repr(text)) < 60 else f"{len(text)} characters"
            raise InvalidRequestError(
                f"stop has {shown}, allowed are strings of 1 to {MAX_STOP_CHARACTERS} characters"
            )
