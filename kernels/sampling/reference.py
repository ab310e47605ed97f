"""Sampling in plain torch: the definition, one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_rows(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """As `ops.sample_rows`."""
    settings = zip(
        temperature.tolist(), top_k.tolist(), top_p.tolist(), min_p.tolist(), uniform.tolist(),
        strict=True,
    )  # fmt: skip
    tokens = [_sample(row, *setting) for row, setting in zip(logits, settings, strict=True)]
    return torch.tensor(tokens, dtype=torch.int64, device=logits.device)


def _sample(
    row: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    best = row.max()
    if not bool(best.isfinite()):  # a NaN is the maximum too
        return -1
    if temperature == 0.0:
        return int(row.argmax())
    scaled = (row - best) / temperature
    weights = scaled.exp().masked_fill(scaled < torch.tensor(min_p).log(), 0.0)
    order = scaled.argsort(descending=True, stable=True)
    kept = weights[order]
    if top_k:
        kept[top_k:] = 0.0
    before = kept.cumsum(0) - kept
    kept[before >= max(top_p * float(kept.sum()), torch.finfo(torch.float32).tiny)] = 0.0
    cumulative = torch.zeros_like(weights).scatter_(0, order, kept).cumsum(0)
    return int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
