"""What the server and the decoder engine say to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from tersor.runtime.errors import ServingError


class FinishReason(Enum):
    """Why a generation ended."""

    STOP = "stop"  # end-of-sequence token, stop string or stop token
    LENGTH = "length"  # max_tokens or the context


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. Temperature 0 is greedy. Validated by `validate_sampling`."""

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; n: the chosen token's and the n most likely


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probability of one chosen token and of the most likely ones, under the raw model."""

    token_id: int
    logprob: float
    rank: int  # 1 is the most likely token
    top: Mapping[int, float]  # token id -> logprob, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one generation took."""

    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float
    load_seconds: float  # waiting for weights; 0 when warm
    prefill_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """A piece of the continuation: valid UTF-8, never part of a stop string."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    last: bool = field(default=False, compare=False)  # Finished follows at once: send them as one


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of a successful generation. `text` etc. were sent as deltas before."""

    reason: FinishReason
    stop_match: str | int | None  # the stop string or token id that ended it
    cumulative_logprob: float | None  # None unless logprobs were asked for
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The last event of a failed generation."""

    error: ServingError


Event = TextDelta | Finished | Failed
EventSink = Callable[[Event], None]  # called on the engine's thread; must not block


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One continuation to compute. `prompt`: text (tokenized, after bos) or ids as they are."""

    prompt: str | tuple[int, ...]
    sampling: SamplingParams
    deadline: float | None = None  # on the engine's clock (time.monotonic), seconds
