"""bf16 weights that the `float12` layout must hold bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.float12.packing import Packed, pack


def every_pattern() -> Tensor:
    """All 65536 bit patterns, bf16 [256, 256]: a row's exponents are two neighbours."""
    return torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).view(256, 256)


def gaussian(n: int, k: int, seed: int = 0) -> Tensor:
    """Rows of different scale, bf16 [n, k], with both zeros and with outliers."""
    rng = torch.Generator().manual_seed(seed)
    scales = torch.exp2(torch.randint(-12, 6, (n, 1), generator=rng))
    weight = torch.randn(n, k, generator=rng) * scales
    weight[torch.rand(n, k, generator=rng) < 0.05] = 0
    weight[torch.rand(n, k, generator=rng) < 0.05] *= -0.0
    weight[torch.rand(n, k, generator=rng) < 0.01] *= 2**-16  # beyond the fifteen exponents
    weight[torch.rand(n, k, generator=rng) < 0.002] *= 2**10
    return weight.bfloat16()


def hostile(n: int, k: int, seed: int = 0) -> Tensor:
    """Any bit pattern anywhere, bf16 [n, k]."""
    rng = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(1 << 15), 1 << 15, (n, k), generator=rng, dtype=torch.int16)
    return bits.view(torch.bfloat16)


def packed(values: Tensor) -> Packed:
    """`values` packed however many of them are escapes."""
    weight = pack(values, max_share=1.0)
    assert weight is not None
    return weight


def same_bits(got: Tensor, want: Tensor) -> bool:
    """Whether two bf16 tensors agree bit for bit, NaN included."""
    return torch.equal(got.view(torch.int16), want.view(torch.int16))
