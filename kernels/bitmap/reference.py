"""The definition of the `bitmap` layout, in float32.

w[n, k] = the next of `values`, in row-major order, where bit k % 8 of bitmap[n, k // 8] is set
(times scales[n] if there are scales), and 0 elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_bits(bitmap: Tensor, k: int) -> Tensor:
    """Unpacks uint8 [N, ceil(k / 8)], lowest bit first, to bool [N, k]."""
    bits = (bitmap[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=bitmap.device)) & 1
    return bits.view(bitmap.shape[0], -1)[:, :k].to(torch.bool)


def pack_bits(mask: Tensor) -> Tensor:
    """The inverse of `unpack_bits`: bool [N, K] to uint8 [N, ceil(K / 8)]."""
    n, k = mask.shape
    padded = torch.nn.functional.pad(mask, (0, -k % 8)).view(n, -1, 8).to(torch.uint8)
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded << shifts).sum(-1, dtype=torch.uint8)


def dequantize(bitmap: Tensor, values: Tensor, scales: Tensor | None, k: int) -> Tensor:
    """Decodes bitmap uint8 [N, ceil(k / 8)] with values [nonzeros] to float32 [N, k]."""
    mask = unpack_bits(bitmap, k)
    weight = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    weight[mask] = values.to(torch.float32)
    return weight if scales is None else weight * scales.to(torch.float32)[:, None]


def matmul(
    x: Tensor, bitmap: Tensor, values: Tensor, scales: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """Multiplies x [M, K] by the weight, adds bias [N] -> float32 [M, N]."""
    y = x.to(torch.float32) @ dequantize(bitmap, values, scales, x.shape[1]).T
    return y if bias is None else y + bias.to(torch.float32)
