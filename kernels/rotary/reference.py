"""From a qkv product to rotated heads in plain float32 torch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.norm.reference import rms_norm
from tersor.kernels.rotary.heads import Heads, SplitHeads


def split_heads(heads: Heads) -> SplitHeads:
    """Queries, keys and values of `heads`, float32.

    A rotated pair is (a cos - b sin, b cos + a sin) of a = x[i], b = x[i + head_dim / 2].
    """
    qkv = heads.qkv.to(torch.float32).sum(0)
    qkv = qkv.unflatten(-1, (heads.num_heads + 2 * heads.num_kv_heads, -1))
    q, k, v = qkv.split((heads.num_heads, heads.num_kv_heads, heads.num_kv_heads), dim=1)
    if heads.q_gain is not None and heads.k_gain is not None:
        q = rms_norm(q, heads.q_gain, heads.eps)
        k = rms_norm(k, heads.k_gain, heads.eps)
    return SplitHeads(_rotated(q, heads), _rotated(k, heads), v)


def _rotated(x: Tensor, heads: Heads) -> Tensor:
    half = x.shape[-1] // 2
    cos = heads.rotation.cos[..., :half].to(torch.float32)
    sin = heads.rotation.sin[..., half:].to(torch.float32)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
