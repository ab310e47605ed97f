"""The planes from which every form of an int4 weight is packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.int4.reference import SYMMETRIC_ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """The canonical planes of one weight, checked."""

    codes: Tensor  # uint8 0..15 [N, K]
    scales: Tensor  # bf16 [N, G], or [1, 1] where all rows share one
    zeros: Tensor | None  # uint8 0..15, as the scales; None: 8 everywhere
    group: int  # columns that share a scale, at least 1; the last group may be short

    def scales_of_rows(self) -> Tensor:
        """bf16 [N, G]."""
        return self.scales.expand(self.codes.shape[0], -1)

    def zeros_of_rows(self) -> Tensor:
        """uint8 [N, G]."""
        if self.zeros is None:
            return torch.full_like(self.scales_of_rows(), SYMMETRIC_ZERO, dtype=torch.uint8)
        return self.zeros.expand(self.codes.shape[0], -1)
