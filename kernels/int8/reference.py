"""The definition of the `int8` layout: w[n, k] = codes[n, k] * scales[n], in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Decodes codes int8 [N, K] with scales [N] to float32 [N, K]."""
    return codes.to(torch.float32) * scales.to(torch.float32)[:, None]


def matmul(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiplies x [M, K] by the weight, adds bias [N] -> float32 [M, N]."""
    y = x.to(torch.float32) @ dequantize(codes, scales).T
    return y if bias is None else y + bias.to(torch.float32)
