"""Forward passes of the model over sequences of the cache, timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tersor.kernels.attention import Span
from tersor.models.contracts import AttentionState
from tersor.runtime.engine.cache import PagedCache
from tersor.runtime.engine.sequence import Sequence as Generation


class Model(Protocol):
    """What the engine asks of `models.decoder.DecoderModel`."""

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention: AttentionState,
        *,
        rows: Tensor | None = None,
    ) -> Tensor: ...


class Pass(NamedTuple):
    """What one forward pass gave."""

    logits: Tensor  # float32 [sequences, vocab_size], of each sequence's last token
    seconds: float  # without `waited`
    waited: float  # seconds for weights


class Runner:
    """Runs the model; the engine's thread is the only one that does."""

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        *,
        device: torch.device,
        clock: Callable[[], float],
        load_seconds: Callable[[], float],
    ) -> None:
        """Binds model and cache.

        Args:
            model: the decoder.
            cache: pages of the sequences.
            device: of both.
            clock: seconds.
            load_seconds: seconds that passes waited for weights so far, over all passes.
        """
        self._model = model
        self._cache = cache
        self._device = device
        self._clock = clock
        self._load_seconds = load_seconds

    def prefill(self, sequence: Generation, count: int) -> Pass:
        """Computes the next `count` prompt tokens of one sequence."""
        first = sequence.computed
        span = sequence.span(count)
        tokens = sequence.tokens[first : first + count]
        result = self._pass([span], tokens, range(first, first + count), last=count - 1)
        sequence.computed += count
        return result

    def decode(self, batch: Sequence[Generation]) -> Pass:
        """Computes the next token of each sequence; nothing changed if it raises."""
        spans = [sequence.span(1) for sequence in batch]
        tokens = [sequence.tokens[sequence.computed] for sequence in batch]
        positions = [sequence.computed for sequence in batch]
        result = self._pass(spans, tokens, positions, last=None)
        for sequence in batch:
            sequence.computed += 1
        return result

    def _pass(
        self,
        spans: Sequence[Span],
        tokens: Sequence[int],
        positions: Sequence[int],
        *,
        last: int | None,
    ) -> Pass:
        begin, waited = self._clock(), self._load_seconds()
        with torch.inference_mode():
            device = self._device
            logits = self._model.forward(
                torch.tensor(tokens, device=device),
                torch.tensor(positions, device=device),
                self._cache.attention(spans),
                rows=None if last is None else torch.tensor([last], device=device),
            )
            if device.type == "cuda":  # or the clock would measure launches
                torch.cuda.synchronize(device)
        waited = self._load_seconds() - waited
        return Pass(logits, max(0.0, self._clock() - begin - waited), waited)
