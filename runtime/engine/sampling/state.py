"""What sampling remembers of one sequence."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from tersor.runtime.engine.sampling.rng import uniform
from tersor.runtime.engine.types import SamplingParams


class SamplerState:
    """The parameters of one sequence and the tokens its penalties count. Not thread-safe."""

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        seed: int,
        prompt: Sequence[int],
        stop_ids: Collection[int],
        vocab_size: int,
    ) -> None:
        """Starts before the first token of the answer.

        Args:
            sampling: validated parameters.
            seed: of the draws; `sampling.seed` if that is set.
            prompt: token ids that repetition counts too.
            stop_ids: tokens that end the answer, forbidden until `min_tokens` were generated.
            vocab_size: ids are below it.
        """
        self.sampling = sampling
        self.generated = 0
        self._seed = seed
        self._stop_ids = sorted(stop_ids)
        self._vocab_size = vocab_size
        self._penalized = (
            sampling.repetition_penalty != 1.0
            or sampling.presence_penalty != 0.0
            or sampling.frequency_penalty != 0.0
        )
        self._prompt = tuple(prompt) if self._penalized else ()
        self._seen: Tensor | None = None  # bool [vocab_size], prompt and answer
        self._counts: Tensor | None = None  # float32 [vocab_size], answer

    @property
    def plain(self) -> bool:
        """Whether the next token is the most likely one, with nothing to change or to report."""
        return (
            self.sampling.temperature == 0.0
            and self.sampling.logprobs is None
            and not self._penalized
            and not self._holds_back
        )

    def uniform(self) -> float:
        """The draw of the next token."""
        return uniform(self._seed, self.generated)

    def record(self, token_id: int) -> None:
        """Counts a chosen token."""
        self.generated += 1
        if self._seen is not None and self._counts is not None:
            self._seen[token_id] = True
            self._counts[token_id] += 1.0

    def adjust(self, logits: Tensor) -> Tensor:
        """The logits [vocab_size] after penalties and forbidden tokens; never changes its argument.

        Repetition divides positive and multiplies negative logits of tokens in prompt or answer;
        presence subtracts once, frequency for every use, for tokens of the answer.
        """
        if self._penalized:
            logits = self._penalize(logits)
        if self._holds_back:
            logits = logits.clone()
            logits[self._stop_ids] = float("-inf")
        return logits

    @property
    def _holds_back(self) -> bool:
        return bool(self._stop_ids) and self.generated < self.sampling.min_tokens

    def _penalize(self, logits: Tensor) -> Tensor:
        if self._seen is None or self._counts is None:
            self._seen = torch.zeros(self._vocab_size, dtype=torch.bool, device=logits.device)
            self._seen[list(self._prompt)] = True
            self._counts = torch.zeros(self._vocab_size, device=logits.device)
        sampling = self.sampling
        penalty = sampling.repetition_penalty
        if penalty != 1.0:
            # Any positive double is allowed; what comes of it must stay in the range of float32.
            limits = torch.finfo(torch.float32)
            penalty = min(max(penalty, limits.tiny), limits.max)
            repeated = torch.where(logits > 0, logits / penalty, logits * penalty)
            repeated = repeated.clamp(limits.min, limits.max)
            logits = torch.where(self._seen, repeated, logits)
        used = (self._counts > 0).float()
        return logits - sampling.presence_penalty * used - sampling.frequency_penalty * self._counts
