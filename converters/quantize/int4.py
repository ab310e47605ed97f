"""int4 with a scale and, unless symmetric, a zero point per group of columns."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.converters.quantize.base import Quantized, row_chunks, sampled_rows, storable
from tersor.converters.quantize.outliers import OutlierPlanes, fit_around_outliers

_TOP = 15
_SYMMETRIC_ZERO = 8
# Share of the group's range that the codes span; 1.0 first, so that ties keep round-to-nearest.
# With 2 refits these reach 22.28 dB on pico's matrices (round-to-nearest 21.86) at 55 ns a weight;
# twenty finer ones reached no more, and all scales with all zero points 0.03 dB more.
_SPANS = (1.0, 1.04, 0.95, 0.9, 0.85)
_REFITS = 2
# The largest of many weights lies far out: whole rows and tensors also try to clip it. On pico
# symmetric rows reach 19.4 dB with these.
_NARROW = 256  # columns of a group that needs none
_WIDE_SPANS = (0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35)


def quantize_int4(
    weight: Tensor,
    *,
    group: int = 32,
    symmetric: bool = False,
    step: Literal["group", "tensor"] = "group",
    outliers: float = 0.0,
) -> Quantized:
    """Quantizes weight [N, K] (bf16, fp16 or fp32, finite) to four bits, with a scale a group.

    Planes: codes u4 [N, K], scales bf16 [N, G], unless symmetric (then it is 8) zeros u4 [N, G],
    and with a share of `outliers` outlier_positions u32 and outlier_values bf16. `group` columns
    share a scale, 0 is the whole row, the last group may be short; with `step` "tensor" all weights
    do, and scales and zeros are [1, 1], chosen on a sample of the rows. Each group takes the scale
    and integer zero point of least squared error among several ranges and neighbouring zero points,
    then least-squares refits of the scale: never worse than round-to-nearest, and zeros stay
    exactly zero.
    """
    columns = weight.shape[1]
    kept = OutlierPlanes(outliers, weight.shape)
    cut = _Cut(columns=columns, width=group or columns, symmetric=symmetric)
    shared = _shared_fit(weight, outliers, symmetric=symmetric) if step == "tensor" else None
    shape = (1, 1) if shared else (weight.shape[0], cut.groups)
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scales = torch.empty(shape, dtype=torch.bfloat16)
    zeros = torch.empty(shape, dtype=torch.uint8)
    squared_error = 0.0
    for span, w in row_chunks(weight):
        fit, chosen = fit_around_outliers(
            w, kept.count(span), (lambda _: shared) if shared else cut.fit, cut.decode
        )
        assert fit is not None
        where = slice(None) if shared else span
        codes[span] = cut.codes(w, fit).to(torch.uint8)
        scales[where] = fit.scale[..., 0].to(torch.bfloat16)
        zeros[where] = fit.zero[..., 0].to(torch.uint8)
        decoded = kept.take(span, chosen, w, cut.decode(w, fit))
        squared_error += float(decoded.sub_(w).square_().sum(dtype=torch.float64))
    planes = {"codes": ("u4", codes), "scales": ("bf16", scales)}
    if not symmetric:
        planes["zeros"] = ("u4", zeros)
    params: dict[str, str | int | bool] = {"group": group, "symmetric": symmetric}
    if step == "tensor":
        params["step"] = "tensor"
    kept.add_to(planes, params)
    return Quantized(layout="int4", params=params, planes=planes, squared_error=squared_error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """Scales and zero points: [n, G, 1], or [1, 1, 1] for all."""

    scale: Tensor
    zero: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """How rows are cut into groups."""

    columns: int
    width: int
    symmetric: bool

    @property
    def groups(self) -> int:
        return ceil(self.columns / self.width)

    def fit(self, w: Tensor) -> _Fit:
        """The best scale and zero point of each group of w [n, K]."""
        return _search(self._grouped(w), symmetric=self.symmetric)

    def codes(self, w: Tensor, fit: _Fit) -> Tensor:
        """Codes of w [n, K] as float32."""
        return self._flat(_levels(self._grouped(w), fit).add_(fit.zero))

    def decode(self, w: Tensor, fit: _Fit) -> Tensor:
        """What w [n, K] becomes."""
        return self._flat(_levels(self._grouped(w), fit).mul_(fit.scale))

    def _grouped(self, w: Tensor) -> Tensor:
        # Padding is 0, which every scale represents exactly: it adds no error and no range.
        padded = F.pad(w, (0, self.groups * self.width - self.columns))
        return padded.view(-1, self.groups, self.width)  # [n, G, g]

    def _flat(self, grouped: Tensor) -> Tensor:
        return grouped.view(-1, self.groups * self.width)[:, : self.columns]


def _shared_fit(weight: Tensor, outliers: float, *, symmetric: bool) -> _Fit:
    """One scale and zero point for all, chosen on a sample of the rows."""
    sample = sampled_rows(weight).view(1, -1)
    cut = _Cut(columns=sample.numel(), width=sample.numel(), symmetric=symmetric)
    count = round(outliers * sample.numel())
    return fit_around_outliers(sample, count, cut.fit, cut.decode)[0]


class _Best:
    """The candidate of least error so far, per group: scale, zero [n, G, 1], error [n, G]."""

    def __init__(self, w: Tensor, scale: Tensor, zero: Tensor) -> None:
        self.w = w
        self.fit = _Fit(scale=scale, zero=zero)
        self.error = _squared_error(w, self.fit)

    def offer(self, scale: Tensor, zero: Tensor) -> None:
        """Keeps (scale, zero) where it is strictly better."""
        error = _squared_error(self.w, _Fit(scale=scale, zero=zero))
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.fit = _Fit(
            scale=torch.where(better[..., None], scale, self.fit.scale),
            zero=torch.where(better[..., None], zero, self.fit.zero),
        )


def _search(w: Tensor, *, symmetric: bool) -> _Fit:
    """The fit of each group of w [n, G, g]."""
    spans = _SPANS if w.shape[-1] <= _NARROW else (*_SPANS, *_WIDE_SPANS)
    if symmetric:
        base = w.abs().amax(-1, keepdim=True) / 7
        zeros = [torch.full_like(base, _SYMMETRIC_ZERO)]
        # Code 0 is level -8: where the largest magnitude is negative, absmax / 8 wastes no level.
        ranges = [base * span for span in (*spans, 7 / 8)]
    else:
        low = w.amin(-1, keepdim=True).clamp_(max=0)
        high = w.amax(-1, keepdim=True).clamp_(min=0)
        base = high / _TOP - low / _TOP  # the difference itself may overflow
        middle = (-low / storable(base)).round_().clamp_(0, _TOP)
        zeros = [(middle + offset).clamp_(0, _TOP) for offset in (0, -1, 1)]
        ranges = [base * span for span in spans]
    best = _Best(w, storable(ranges[0]), zeros[0])
    for candidate in ranges:
        scale = storable(candidate)
        for zero in zeros:
            best.offer(scale, zero)
    for _ in range(_REFITS):
        levels = _levels(w, best.fit)
        energy = levels.square().sum(-1, keepdim=True)
        fitted = (levels * w).sum(-1, keepdim=True) / energy.clamp_(min=1)
        best.offer(storable(fitted), best.fit.zero)
    return best.fit


def _levels(w: Tensor, fit: _Fit) -> Tensor:
    """Codes minus zero point: integers in [-zero, 15 - zero], as float32."""
    return w.div(fit.scale).round_().clamp_(min=-fit.zero, max=_TOP - fit.zero)


def _squared_error(w: Tensor, fit: _Fit) -> Tensor:
    """[n, G, g] -> [n, G]."""
    return _levels(w, fit).mul_(fit.scale).sub_(w).square_().sum(-1)
