"""The definition of the `fp8` layout, in float32: w[n, k] = codes[n, k] * the scale of its block.

The block is the row, or 128 x 128 weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128  # rows and columns of a block that shares a scale
TOP = 448.0  # the largest e4m3 number
# A token whose activations are all smaller counts as zero: its power must be a normal number.
SMALLEST = 2.0**-100


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Decodes codes e4m3 [N, K] to float32, with scales [N] or [ceil(N / 128), ceil(K / 128)]."""
    n, k = codes.shape
    scales = scales.to(torch.float32)
    if scales.dim() == 1:
        return codes.to(torch.float32) * scales[:, None]
    wide = scales.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    return codes.to(torch.float32) * wide


def token_scales(x: Tensor) -> Tensor:
    """For each row of x [M, K] the smallest power of two p with |x| <= TOP * p: float32 [M, 1].

    A power of two, because rounded activations then are exact in bf16 and nothing has to be scaled
    after the product; a floating-point grid loses nothing by it, unlike an integer one.
    """
    shape = (x.shape[0], 1)
    peak = x.abs().amax(1, keepdim=True).to(torch.float32) if x.shape[1] else x.new_zeros(shape)
    mantissa, exponent = torch.frexp(peak / TOP)  # peak / TOP = mantissa * 2^exponent, from 0.5 on
    exponent = exponent - (mantissa == 0.5).to(torch.int32)  # itself a power of two
    return torch.where(peak < SMALLEST, 1.0, torch.ldexp(torch.ones_like(peak), exponent))


def round_tokens(x: Tensor) -> Tensor:
    """Rounds each row of x [M, K] to e4m3 numbers times its `token_scales`, in x.dtype."""
    scales = token_scales(x)
    codes = (x.to(torch.float32) / scales).to(torch.float8_e4m3fn)
    return (codes.to(torch.float32) * scales).to(x.dtype)


def matmul(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    *,
    fp8_activations: bool = False,
) -> Tensor:
    """Multiplies x [M, K] by the weight, adds bias [N] -> float32 [M, N]."""
    x = round_tokens(x) if fp8_activations else x
    y = x.to(torch.float32) @ dequantize(codes, scales).T
    return y if bias is None else y + bias.to(torch.float32)
