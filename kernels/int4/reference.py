"""The definition of the `int4` layout, in float32.

w[n, k] = (codes[n, k] - zeros[n, g]) * scales[n, g], g = k // group
"""

from __future__ import annotations

import torch
from torch import Tensor

SYMMETRIC_ZERO = 8


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> Tensor:
    """Decodes codes uint8 0..15 [N, K] with scales and zeros [N, G] (None is 8) to float32 [N, K].

    `group` columns share a scale; 0 is the whole row. The last group may be short.
    """
    columns = codes.shape[1]
    repeats = group or columns
    wide_scales = scales.to(torch.float32).repeat_interleave(repeats, 1)[:, :columns]
    if zeros is None:
        return (codes.to(torch.float32) - SYMMETRIC_ZERO) * wide_scales
    wide_zeros = zeros.to(torch.float32).repeat_interleave(repeats, 1)[:, :columns]
    return (codes.to(torch.float32) - wide_zeros) * wide_scales


def matmul(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiplies x [M, K] by the weight, adds bias [N] -> float32 [M, N]."""
    y = x.to(torch.float32) @ dequantize(codes, scales, zeros, group).T
    return y if bias is None else y + bias.to(torch.float32)
