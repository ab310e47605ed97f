"""Random operands of the fused decoder operators."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tersor.kernels.rotary import Heads, Rotation

EPS = 1e-5


class Tolerance(NamedTuple):
    """By how much a result may miss its reference."""

    rtol: float
    atol: float

    def check(self, got: Tensor, want: Tensor) -> None:
        torch.testing.assert_close(got, want, rtol=self.rtol, atol=self.atol)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers that are exact in bf16."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng).bfloat16().to(dtype)


def rotation(tokens: int, head_dim: int, dtype: torch.dtype = torch.float32) -> Rotation:
    """Rows of a table as `models.rotary` makes them: cosines and sines side by side in memory."""
    angles = torch.outer(torch.arange(tokens) + 3.0, 0.3 ** torch.arange(head_dim // 2))
    cos, sin = angles.cos(), angles.sin()
    rows = torch.cat((cos, cos, -sin, sin), -1).bfloat16().to(dtype).view(tokens, 2, head_dim)
    return Rotation(rows[:, 0:1], rows[:, 1:2])


def heads(
    tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    splits: int = 1,
    norm: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Heads:
    """Heads of `dtype`, with parts in float32 where there are several."""
    width = (num_heads + 2 * num_kv_heads) * head_dim
    parts = torch.float32 if splits > 1 else dtype
    return Heads(
        qkv=random(splits, tokens, width, seed=1, dtype=parts),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        rotation=rotation(tokens, head_dim, dtype),
        q_gain=random(head_dim, seed=2, dtype=dtype) if norm else None,
        k_gain=random(head_dim, seed=3, dtype=dtype) if norm else None,
        eps=EPS,
    )


def moved(heads: Heads, device: torch.device) -> Heads:
    """`heads` on `device`."""
    cos, sin = heads.rotation
    return Heads(
        qkv=heads.qkv.to(device),
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        rotation=Rotation(cos.to(device), sin.to(device)),
        q_gain=None if heads.q_gain is None else heads.q_gain.to(device),
        k_gain=None if heads.k_gain is None else heads.k_gain.to(device),
        eps=heads.eps,
    )
