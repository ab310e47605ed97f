"""The definition of the `dense` layout: the plane is the weight."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize(values: Tensor) -> Tensor:
    """Widens values [...] to float32 [...]."""
    return values.to(torch.float32)


def matmul(x: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiplies x [M, K] by values [N, K], bias [N] -> float32 [M, N]."""
    y = x.to(torch.float32) @ dequantize(values).T
    return y if bias is None else y + bias.to(torch.float32)
