"""The heads of a pass before they are rotated, and their rotation in plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Rotation(NamedTuple):
    """What one forward pass needs: rows of the tables for its positions."""

    cos: Tensor  # [T, 1, head_dim] in the activations' dtype, both halves the same
    sin: Tensor  # [T, 1, head_dim], the first half negated

    def apply(self, x: Tensor) -> Tensor:
        """Rotates x [T, heads, head_dim] (any strides); returns a new contiguous tensor.

        The pairs are (i, i + head_dim / 2): rolling by half a head brings partners together and
        the sign lives in the table, so this is three kernels instead of the six of the textbook.
        """
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, -1), self.sin)


class SplitHeads(NamedTuple):
    """What attention computes with: rotated queries and keys, and values."""

    q: Tensor  # [T, num_heads, head_dim]
    k: Tensor  # [T, num_kv_heads, head_dim]
    v: Tensor  # [T, num_kv_heads, head_dim]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Queries, keys and values as the qkv product leaves them, and what is still to be done.

    Adding the product's parts up, normalizing and rotating the heads is left to the attention
    state, because a paged one does it in the launch that stores keys and values
    (`rotate_store`). One that keeps plain tensors calls `split`.
    """

    qkv: Tensor  # [S, T, (num_heads + 2 * num_kv_heads) * head_dim], to be summed over S
    num_heads: int
    num_kv_heads: int
    rotation: Rotation
    q_gain: Tensor | None = None  # [head_dim], of the RMS norm before the rotation, if there is one
    k_gain: Tensor | None = None  # [head_dim], there if and only if q_gain is
    eps: float = 0.0  # of that norm

    @property
    def dtype(self) -> torch.dtype:
        """The activations' dtype: that of queries, keys and values."""
        return self.rotation.cos.dtype

    def split(self) -> SplitHeads:
        """Normalizes and rotates: queries, keys and values in `dtype`."""
        heads, kv_heads = self.num_heads, self.num_kv_heads
        whole = self.qkv if self.qkv.shape[0] == 1 else self.qkv.sum(0).to(self.dtype)
        qkv = whole.view(self.qkv.shape[1], heads + 2 * kv_heads, -1)  # [T, heads, head_dim]
        rotated = heads + kv_heads
        if self.q_gain is None or self.k_gain is None:
            qk = self.rotation.apply(qkv[:, :rotated])
            q, k = qk[:, :heads], qk[:, heads:]
        else:
            q = self.rotation.apply(self._norm(qkv[:, :heads], self.q_gain))
            k = self.rotation.apply(self._norm(qkv[:, heads:rotated], self.k_gain))
        return SplitHeads(q, k, qkv[:, rotated:])

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return F.rms_norm(x, gain.shape, gain, self.eps)
