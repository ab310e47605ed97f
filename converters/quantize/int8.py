"""int8 with one symmetric scale per row."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.converters.quantize.base import Quantized, row_chunks, storable

_LIMIT = 127
# Share of the row's absmax at code 127; 1.0 first, so that ties keep plain round-to-nearest.
_SHRINKS = (1.0, 1.004, 0.996, 0.98, 0.96, 0.93, 0.9, 0.85)


def quantize_int8(weight: Tensor) -> Quantized:
    """Quantizes weight [N, K] (bf16, fp16 or fp32, finite) to eight bits, with a scale a row.

    Planes: codes i8 [N, K], scales bf16 [N]. Each row takes the candidate scale of least squared
    error, so the result is never worse than round-to-nearest at the row's absmax; zeros stay
    exactly zero.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], dtype=torch.bfloat16)
    squared_error = 0.0
    for span, w in row_chunks(weight):
        scale, error = _best_scale(w)
        codes[span] = w.div(scale).round_().clamp_(-_LIMIT, _LIMIT).to(torch.int8)
        scales[span] = scale[:, 0].to(torch.bfloat16)
        squared_error += float(error.sum(dtype=torch.float64))
    planes = {"codes": ("i8", codes), "scales": ("bf16", scales)}
    return Quantized(layout="int8", params={}, planes=planes, squared_error=squared_error)


def _best_scale(w: Tensor) -> tuple[Tensor, Tensor]:
    """From w [n, K]: scale [n, 1] and its squared error [n]."""
    base = w.abs().amax(1, keepdim=True) / _LIMIT  # [n, 1]
    best_scale = storable(base)
    best_error = _squared_error(w, best_scale)
    for shrink in _SHRINKS[1:]:
        scale = storable(base * shrink)
        error = _squared_error(w, scale)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better[:, None], scale, best_scale)
    return best_scale, best_error


def _squared_error(w: Tensor, scale: Tensor) -> Tensor:
    """[n, K], [n, 1] -> [n]."""
    decoded = w.div(scale).round_().clamp_(-_LIMIT, _LIMIT).mul_(scale)
    return decoded.sub_(w).square_().sum(1)
