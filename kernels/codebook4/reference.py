"""The definition of the `codebook4` layout, in float32.

w[n, k] = table[codes[n, k]] * scales[n, g] (* tensor_scale), g = k // group
"""

from __future__ import annotations

import torch
from torch import Tensor

# 2^-127, the value of the e8m0 exponent 0, as float32: subnormal, so not an exponent field.
E8M0_LEAST_BITS = 0x00400000


def scale_values(scales: Tensor) -> Tensor:
    """Scales in float32: uint8 holds e8m0 exponents (2^(b - 127)), the rest are floats.

    e8m0: OCP Microscaling Formats (MX) Specification 1.0, section 5.4.1.
    """
    if scales.dtype != torch.uint8:
        return scales.to(torch.float32)
    bits = (scales.to(torch.int32) << 23).clamp_min_(E8M0_LEAST_BITS)
    return bits.view(torch.float32)


def dequantize(
    codes: Tensor, scales: Tensor, table: Tensor, group: int, tensor_scale: Tensor | None = None
) -> Tensor:
    """Decodes codes uint8 0..15 [N, K] to float32 [N, K].

    Args:
        codes: indices into `table`.
        scales: [N, G], see `scale_values`.
        table: float32 [16].
        group: columns that share a scale; 0 is the whole row. The last group may be short.
        tensor_scale: float32 [1], or None for 1.
    """
    columns = codes.shape[1]
    wide_scales = scale_values(scales).repeat_interleave(group or columns, 1)[:, :columns]
    weight = table[codes.to(torch.int32)] * wide_scales
    return weight if tensor_scale is None else weight * tensor_scale


def matmul(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    table: Tensor,
    group: int,
    tensor_scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiplies x [M, K] by the weight, adds bias [N] -> float32 [M, N]."""
    y = x.to(torch.float32) @ dequantize(codes, scales, table, group, tensor_scale).T
    return y if bias is None else y + bias.to(torch.float32)
