"""int6 with one symmetric step per row or per tensor, and perhaps sparse outliers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.converters.quantize.base import Quantized, row_chunks, sampled_rows, storable
from tersor.converters.quantize.outliers import OutlierPlanes, fit_around_outliers

_LOW, _HIGH = -32, 31
# Share of the largest magnitude at code 31; 1.0 first, so that ties keep round-to-nearest. Heavy
# tails want steps that clip them, outliers or not.
_SPANS = (1.0, 1.016, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78, 0.74, 0.7, 0.65, 0.6, 0.5, 0.4)
_REFITS = 2


def quantize_int6(
    weight: Tensor, *, step: Literal["row", "tensor"] = "row", outliers: float = 0.0
) -> Quantized:
    """Quantizes weight [N, K] (bf16, fp16 or fp32, finite) to six bits.

    Planes: codes i8 [N, K] from -32 to 31, scales bf16 [N] (or [1] with a step per tensor) and,
    with a share of `outliers`, outlier_positions u32 and outlier_values bf16. The step is that of
    least squared error among several and their least-squares refits; a step per tensor is found
    on a sample of the rows. Zeros stay exactly zero.
    """
    kept = OutlierPlanes(outliers, weight.shape)
    shared = None
    if step == "tensor":
        sample = sampled_rows(weight).view(1, -1)
        shared, _ = fit_around_outliers(sample, round(outliers * sample.numel()), _fit, _decode)
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(1 if step == "tensor" else weight.shape[0], dtype=torch.bfloat16)
    squared_error = 0.0
    for span, w in row_chunks(weight):
        scale, chosen = fit_around_outliers(
            w, kept.count(span), _fit if shared is None else lambda _: shared, _decode
        )
        assert scale is not None
        codes[span] = _levels(w, scale).to(torch.int8)
        scales[span if shared is None else slice(None)] = scale[:, 0].to(torch.bfloat16)
        decoded = kept.take(span, chosen, w, _decode(w, scale))
        squared_error += float(decoded.sub_(w).square_().sum(dtype=torch.float64))
    planes = {"codes": ("i8", codes), "scales": ("bf16", scales)}
    params: dict[str, str | int | bool] = {"step": "tensor"} if step == "tensor" else {}
    kept.add_to(planes, params)
    return Quantized(layout="int6", params=params, planes=planes, squared_error=squared_error)


def _fit(w: Tensor) -> Tensor:
    """From w [n, K]: scale [n, 1] of least squared error."""
    base = w.abs().amax(1, keepdim=True) / _HIGH
    best_scale = storable(base)
    best_error = _squared_error(w, best_scale)
    for span in _SPANS[1:]:
        best_scale, best_error = _better(w, base * span, best_scale, best_error)
    for _ in range(_REFITS):
        levels = _levels(w, best_scale)
        fitted = (levels * w).sum(1, keepdim=True) / levels.square().sum(1, keepdim=True).clamp(1)
        best_scale, best_error = _better(w, fitted, best_scale, best_error)
    return best_scale


def _better(w: Tensor, offered: Tensor, scale: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """The offered scale where it is strictly better than `scale`, and the errors."""
    offered = storable(offered)
    offered_error = _squared_error(w, offered)
    better = offered_error < error
    return torch.where(better, offered, scale), torch.where(better, offered_error, error)


def _levels(w: Tensor, scale: Tensor) -> Tensor:
    return w.div(scale).round_().clamp_(_LOW, _HIGH)


def _decode(w: Tensor, scale: Tensor) -> Tensor:
    return _levels(w, scale).mul_(scale)


def _squared_error(w: Tensor, scale: Tensor) -> Tensor:
    """[n, K], [n, 1] -> [n, 1]."""
    return _decode(w, scale).sub_(w).square_().sum(1, keepdim=True)
