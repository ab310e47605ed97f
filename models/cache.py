"""Attention states that keep keys and values in plain tensors.

`FullAttention` serves evaluation and calibration (rectangular batches, one pass, nothing kept);
`GrowingCache` generates one sequence. Serving has its own, paged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.kernels.rotary import Heads
from tersor.models.contracts import AttentionState

_FIRST_CAPACITY = 64  # tokens; the buffers double from there


class FullAttention(AttentionState):
    """Causal attention over a rectangular batch in one pass: tokens are [batch * length], flat."""

    def __init__(self, batch: int, length: int) -> None:
        self._batch = batch
        self._length = length
        self._masks: dict[int, Tensor] = {}

    def attend(self, layer: int, heads: Heads, *, scale: float, window: int | None) -> Tensor:
        del layer  # nothing is kept between layers
        q, k, v = heads.split()
        mask = None
        if window is not None and window < self._length:
            mask = self._masks.get(window)
            if mask is None:
                mask = self._masks[window] = causal_mask(
                    self._length, self._length, window, q.device
                )
        y = F.scaled_dot_product_attention(
            self._split(q),
            self._split(k),
            self._split(v),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # [batch, heads, length, head_dim]
        return y.transpose(1, 2).reshape(q.shape)

    def _split(self, x: Tensor) -> Tensor:
        """[batch * length, heads, head_dim] -> [batch, heads, length, head_dim], a view."""
        return x.view(self._batch, self._length, *x.shape[1:]).transpose(1, 2)


class GrowingCache(AttentionState):
    """Keys and values of one sequence, extended by every pass. Not safe from two threads.

    The tokens of a pass follow those of the passes before it.
    """

    def __init__(self) -> None:
        self._layers: dict[int, _LayerCache] = {}

    @property
    def length(self) -> int:
        """Tokens held by the first layer: all of them between passes."""
        return self._layers[0].length if self._layers else 0

    def attend(self, layer: int, heads: Heads, *, scale: float, window: int | None) -> Tensor:
        q, k, v = heads.split()
        cache = self._layers.get(layer)
        if cache is None:
            cache = self._layers[layer] = _LayerCache(k)
        cache.append(k, v)
        count, num_heads, head_dim = q.shape
        kv_heads = heads.num_kv_heads
        # Keys before the first query's window are seen by none of the queries.
        first = 0 if window is None else max(0, cache.length - count + 1 - window)
        keys = cache.keys[None, :, first : cache.length]  # [1, kv_heads, n, head_dim]
        values = cache.values[None, :, first : cache.length]
        if count == 1:
            # One query sees every key, so the heads of a group are rows of one query matrix:
            # half the time of enable_gqa at 1024 keys, a seventh in bf16.
            grouped = q.view(1, kv_heads, num_heads // kv_heads, head_dim)
            y = F.scaled_dot_product_attention(grouped, keys, values, scale=scale)
            return y.reshape(q.shape)
        mask = None
        if keys.shape[2] > count or (window is not None and window < count):
            mask = causal_mask(count, keys.shape[2], window, q.device)
        y = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=num_heads != kv_heads,
        )
        return y[0].transpose(0, 1)


class _LayerCache:
    """Buffers [kv_heads, capacity, head_dim] of which the first `length` tokens are valid."""

    def __init__(self, like: Tensor) -> None:
        shape = (like.shape[1], max(_FIRST_CAPACITY, like.shape[0]), like.shape[2])
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> None:
        """Adds k, v [T, kv_heads, head_dim]."""
        end = self.length + k.shape[0]
        if end > self.keys.shape[1]:
            capacity = max(end, 2 * self.keys.shape[1])
            self.keys = _grown(self.keys, capacity, self.length)
            self.values = _grown(self.values, capacity, self.length)
        self.keys[:, self.length : end] = k.transpose(0, 1)
        self.values[:, self.length : end] = v.transpose(0, 1)
        self.length = end


def _grown(buffer: Tensor, capacity: int, length: int) -> Tensor:
    grown = buffer.new_empty((buffer.shape[0], capacity, buffer.shape[2]))
    grown[:, :length] = buffer[:, :length]
    return grown


def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each of the last `queries` tokens sees: bool [queries, keys], True is seen.

    The last query stands at the last key; a token sees itself and the window-1 tokens before it.
    """
    key = torch.arange(keys, device=device)
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    mask = key <= query
    return mask if window is None else mask & (key > query - window)
