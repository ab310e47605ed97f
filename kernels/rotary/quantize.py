"""The int8 form of keys and values: one scale per token and kv head.

A scale per token, because tokens are stored one by one and never touched again; per head, because
heads differ. float32, so that what a scale costs in precision needs no thought: 4 bytes beside
head_dim codes, 3 % at 128. Scales stay out of the dots: a key's multiplies its column of scores, a
value's its column of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_CODE = 127
SCALE_BYTES = 4
SMALLEST = 1e-30  # magnitudes below are no reason to divide by zero


def quantize_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 and scales float32 [...] of x [..., head_dim], such that x ~ codes * scale.

    The largest magnitude of a head becomes 127; ties are rounded to even. A head with an infinity
    or a NaN in it comes back as NaN altogether, so that it is noticed where it would be in bf16.
    """
    x = x.float()
    largest = x.abs().amax(-1)
    # `MAX_CODE / tensor` would multiply by a rounded reciprocal.
    inverse = torch.full_like(largest, MAX_CODE) / largest.clamp_min(SMALLEST)
    codes = (x * inverse[..., None]).round().nan_to_num(0.0)
    scales = largest * (1.0 / MAX_CODE) + (x * 0.0).sum(-1)
    return codes.to(torch.int8), scales


def dequantize_kv(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiplies codes [..., head_dim] by scales [...], in `dtype`."""
    return (codes.float() * scales[..., None]).to(dtype)
