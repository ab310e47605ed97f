"""The forms in which an int4 weight can be resident, chosen by device and group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tersor.kernels.gemv.finish import Finish
from tersor.kernels.int4.reference import SYMMETRIC_ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """The canonical planes of one weight, checked: what every form is packed from."""

    codes: Tensor  # uint8 0..15 [N, K]
    scales: Tensor  # bf16 [N, G]
    zeros: Tensor | None  # uint8 0..15 [N, G]; None: 8 everywhere
    group: int  # columns that share a scale, at least 1; the last group may be short

    def zeros_or_default(self) -> Tensor:
        """uint8 [N, G]."""
        if self.zeros is None:
            return torch.full_like(self.scales, SYMMETRIC_ZERO, dtype=torch.uint8)
        return self.zeros


class Form(Protocol):
    """A packed int4 weight on its device. Immutable."""

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
