"""int8 with one symmetric scale per row, or for the whole matrix."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.converters.quantize.base import Quantized, row_chunks, storable

_LIMIT = 127
# Share of the absmax at code 127; 1.0 first, so that ties keep plain round-to-nearest.
_SHRINKS = (1.0, 1.004, 0.996, 0.98, 0.96, 0.93, 0.9, 0.85)


def quantize_int8(
    weight: Tensor, *, step: Literal["row", "tensor"] = "row", activations: str = "16-bit"
) -> Quantized:
    """Quantizes weight [N, K] (bf16, fp16 or fp32, finite) to eight bits, symmetric.

    Planes: codes i8 [N, K], scales bf16 [N], or [1] with step "tensor". Each row (the matrix) takes
    the candidate scale of least squared error, so the result is never worse than round-to-nearest
    at its absmax; zeros stay exactly zero. `activations` "int8" has the layout round those, too.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0] if step == "row" else 1, dtype=torch.bfloat16)
    whole = _scale_of_all(weight) if step == "tensor" else None
    squared_error = 0.0
    for span, w in row_chunks(weight):
        scale = _scale_of_rows(w) if whole is None else whole
        squared_error += float(_squared_error(w, scale).sum(dtype=torch.float64))
        codes[span] = w.div(scale).round_().clamp_(-_LIMIT, _LIMIT).to(torch.int8)
        scales[span if whole is None else slice(None)] = scale[:, 0].to(torch.bfloat16)
    planes = {"codes": ("i8", codes), "scales": ("bf16", scales)}
    params: dict[str, int | bool | str] = {}
    if step == "tensor":
        params["step"] = step
    if activations == "int8":
        params["activations"] = activations
    return Quantized(layout="int8", params=params, planes=planes, squared_error=squared_error)


def _scale_of_rows(w: Tensor) -> Tensor:
    """From w [n, K]: the best scale of each row, [n, 1]."""
    base = w.abs().amax(1, keepdim=True) / _LIMIT  # [n, 1]
    best_scale = storable(base)
    best_error = _squared_error(w, best_scale)
    for shrink in _SHRINKS[1:]:
        scale = storable(base * shrink)
        error = _squared_error(w, scale)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better[:, None], scale, best_scale)
    return best_scale


def _scale_of_all(weight: Tensor) -> Tensor:
    """From weight [N, K]: the best scale of the whole, [1, 1]."""
    peak = max(float(w.abs().max()) for _, w in row_chunks(weight))
    scales = [storable(torch.full((1, 1), peak / _LIMIT * shrink)) for shrink in _SHRINKS]
    errors = [0.0] * len(scales)
    for _, w in row_chunks(weight):
        for index, scale in enumerate(scales):
            errors[index] += float(_squared_error(w, scale).sum(dtype=torch.float64))
    return scales[errors.index(min(errors))]


def _squared_error(w: Tensor, scale: Tensor) -> Tensor:
    """[n, K], [n, 1] or [1, 1] -> [n]."""
    decoded = w.div(scale).round_().clamp_(-_LIMIT, _LIMIT).mul_(scale)
    return decoded.sub_(w).square_().sum(1)
