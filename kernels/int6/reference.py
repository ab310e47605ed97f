"""The definition of the `int6` layout without outliers: w[n, k] = codes[n, k] * scales[n]."""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST, HIGHEST = -32, 31


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Decodes codes int8 -32..31 [N, K] with scales [N], or [1] for all rows, to float32 [N, K]."""
    return codes.to(torch.float32) * scales.to(torch.float32)[:, None]
