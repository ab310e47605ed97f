"""The forms in which a codebook4 weight can be resident, chosen by device and group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tersor.kernels.gemv.finish import Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """The canonical planes of one weight, checked: what every form is packed from."""

    codes: Tensor  # uint8 0..15 [N, K]
    scales: Tensor  # [N, G]: bf16, float32, e4m3, or uint8 for e8m0
    table: Tensor  # float32 [16]
    tensor_scale: Tensor | None  # float32 [1]
    scale: str  # form of the scales, a key of `scales.SCALE_DTYPES`
    group: int  # columns that share a scale, at least 1; the last group may be short


class Form(Protocol):
    """A packed codebook4 weight on its device. Immutable."""

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        """Multiplies x [M, K] contiguous, fp32 or bf16: what `finish` says."""
        ...

    def dequantize(self) -> Tensor:
        """The weight in float32 [N, K]."""
        ...

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the weight: indices int64 [T] -> float32 [T, K]."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes resident."""
        ...
