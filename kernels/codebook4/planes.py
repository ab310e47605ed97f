"""The canonical planes of a codebook4 weight: what every resident form is packed from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """The canonical planes of one weight, checked."""

    codes: Tensor  # uint8 0..15 [N, K]
    scales: Tensor  # [N, G]: bf16, float32, e4m3, or uint8 for e8m0
    table: Tensor  # float32 [16]
    tensor_scale: Tensor | None  # float32 [1]
    scale: str  # form of the scales, a key of `scales.SCALE_DTYPES`
    group: int  # columns that share a scale, at least 1; the last group may be short
