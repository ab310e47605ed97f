"""Choosing the next tokens of a batch in one launch, where logits are on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tersor.kernels.sampling import sample_rows
from tersor.runtime.engine.sampling.state import SamplerState

# Requests carry doubles; a temperature that float32 rounds to 0 would be greedy by chance.
_FLOAT32 = torch.finfo(torch.float32)


def choose(logits: Tensor, states: Sequence[SamplerState]) -> list[int]:
    """One token a row, or -1 where nothing can be chosen; waits for the device once.

    Args:
        logits: float32 [len(states), vocab_size], contiguous; not changed.
        states: one a row.
    """
    adjusted = _adjusted(logits, states)
    vocab = logits.shape[1]
    settings = [
        (
            _temperature(state.sampling.temperature),
            float(min(state.sampling.top_k, vocab)),
            state.sampling.top_p,
            state.sampling.min_p,
            state.uniform(),
        )
        for state in states
    ]
    columns = torch.tensor(settings, dtype=torch.float32).T.contiguous().to(logits.device)
    temperature, top_k, top_p, min_p, uniform = columns
    chosen = sample_rows(adjusted, temperature, top_k.to(torch.int32), top_p, min_p, uniform)
    tokens: list[int] = chosen.tolist()
    return tokens


def _temperature(value: float) -> float:
    return 0.0 if value == 0.0 else min(max(value, _FLOAT32.tiny), _FLOAT32.max)


def _adjusted(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """The logits after penalties and forbidden tokens: a copy if any row has such."""
    adjusted = logits
    for row, state in enumerate(states):
        if state.plain:
            continue
        raw = logits[row]
        changed = state.adjust(raw)
        if changed is not raw:
            adjusted = logits.clone() if adjusted is logits else adjusted
            # A forbidden token must not hide that it was NaN.
            adjusted[row] = torch.where(raw.max().isfinite(), changed, float("nan"))
    return adjusted
