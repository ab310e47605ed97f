"""The growing answer of one sequence: tokens become text deltas, and something ends it."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.models.tokenizer import StreamDecoder
from tersor.runtime.engine.sampling import Sampled
from tersor.runtime.engine.stopping import StopStrings
from tersor.runtime.engine.types import FinishReason, SamplingParams, TextDelta, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the answer is whole."""

    reason: FinishReason
    match: str | int | None = None  # the stop string or token id


class Answer:
    """Collects the tokens of one answer. Not thread-safe.

    A stop token ends the answer without adding to its text; a stop string ends it before itself.
    `token_ids` and log-probabilities are those of every generated token, the last ones included.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        decoder: StreamDecoder,
        *,
        max_tokens: int,
        stop_ids: frozenset[int],
    ) -> None:
        """Starts empty.

        Args:
            sampling: gives stop strings, `min_tokens` and whether log-probabilities are reported.
            decoder: of this answer's tokens.
            max_tokens: `sampling.max_tokens`, clipped by the context.
            stop_ids: tokens that end the answer.
        """
        self._decoder = decoder
        self._max_tokens = max_tokens
        self._min_tokens = sampling.min_tokens
        self._stop_ids = stop_ids
        self._stops = StopStrings(sampling.stop)
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self.count = 0
        self.cumulative_logprob = None if sampling.logprobs is None else 0.0

    def push(self, sampled: Sampled) -> Ending | None:
        """Adds a token; answers why the answer ends with it, if it does."""
        token_id = sampled.token_id
        self.count += 1
        self._token_ids.append(token_id)
        if sampled.logprobs is not None and self.cumulative_logprob is not None:
            self._logprobs.append(sampled.logprobs)
            self.cumulative_logprob += sampled.logprobs.logprob
        if token_id in self._stop_ids and self.count > self._min_tokens:
            return self._flush() or Ending(FinishReason.STOP, token_id)
        piece = self._decoder.push(token_id)
        if self.count < self._min_tokens:  # stop strings are looked for in later text only
            self._text += piece
        else:
            ending = self._scan(piece)
            if ending is not None:
                return ending
        if self.count >= self._max_tokens:
            return self._flush() or Ending(FinishReason.LENGTH)
        return None

    def take(self, *, everything: bool = False) -> TextDelta | None:
        """The delta to send now: None until there is text, or `everything` asks for the rest."""
        if not self._text and not (everything and self._token_ids):
            return None
        delta = TextDelta(
            text=self._text,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            last=everything,
        )
        self._text = ""
        self._token_ids.clear()
        self._logprobs.clear()
        return delta

    def _scan(self, piece: str) -> Ending | None:
        text, match = self._stops.push(piece)
        self._text += text
        return None if match is None else Ending(FinishReason.STOP, match)

    def _flush(self) -> Ending | None:
        """Lets go of what was held back; a stop string may still be complete with it."""
        ending = self._scan(self._decoder.flush())
        if ending is None:
            self._text += self._stops.flush()
        return ending
