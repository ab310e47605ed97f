"""Attention of one sequence over torch's fused attention: the path of CPUs.

Contiguous pages are read where they lie; scattered ones are gathered first (measured on one core,
300 tokens of 2x64 heads: 14 us in place, 38 us gathered, and 38 us per sequence in a padded batch
of 32).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.kernels.attention.scoring import Scoring
from tersor.kernels.attention.spans import Span
from tersor.kernels.rotary.quantize import dequantize_kv


class SequenceAttention:
    """One span of a pass, with what its layers share."""

    def __init__(self, span: Span, page_tokens: int, device: torch.device) -> None:
        self.span = span
        pages = span.pages[: -(-span.context // page_tokens)]
        self._origin = pages[0] * page_tokens  # slot of token 0, if contiguous
        self._pages = None if span.contiguous else torch.tensor(pages, device=device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self, q: Tensor, cache: Tensor, kv_scales: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Attends q [queries, kv_heads, share, head_dim]; the same shape comes back, contiguous."""
        span, window, scale = self.span, scoring.window, scoring.scale
        low = 0 if window is None else max(0, span.start + 1 - window)
        keys, values = self._keys_values(low, cache, kv_scales, q.dtype)
        count = keys.shape[2]
        if scoring.soft_cap is not None or scoring.sinks is not None:
            mask = None if span.queries == 1 else self._mask(count, window, q.dtype, q.device)
            return _explicit(q, keys[0], values[0], mask, scoring)
        if span.queries == 1:  # sees every key, and the heads of a kv head are rows of one query
            return F.scaled_dot_product_attention(q, keys, values, scale=scale)
        causal = count == span.queries and (window is None or window >= count)
        shape = (q.shape[1], q.shape[2], count, q.shape[3])
        y = F.scaled_dot_product_attention(
            q.permute(1, 2, 0, 3),  # [kv_heads, share, T, head_dim]: expanding keys copies nothing
            keys.transpose(0, 1).expand(shape),
            values.transpose(0, 1).expand(shape),
            attn_mask=None if causal else self._mask(count, window, q.dtype, q.device),
            is_causal=causal,
            scale=scale,
        )
        return y.permute(2, 0, 1, 3).contiguous()

    def _keys_values(
        self, low: int, cache: Tensor, kv_scales: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens `low` … context-1, each [1, kv_heads, n, head_dim]."""
        kv_heads, head_dim = cache.shape[3:]
        first, count = low, self.span.context - low
        if self._pages is None:
            first += self._origin
        else:
            cache = cache.index_select(0, self._pages)
            kv_scales = None if kv_scales is None else kv_scales.index_select(0, self._pages)
        if cache.dtype != dtype:
            cache = cache.flatten(0, 1)[first : first + count]  # [n, 2, kv_heads, head_dim]
            if kv_scales is None:
                cache = cache.to(dtype)
            else:
                scales = kv_scales.flatten(0, 1)[first : first + count]
                cache = dequantize_kv(cache, scales, dtype)
            first = 0
        row = kv_heads * head_dim
        shape, strides = (1, kv_heads, count, head_dim), (0, head_dim, 2 * row, 1)
        offset = cache.storage_offset() + first * 2 * row
        keys = cache.as_strided(shape, strides, offset)
        return keys, cache.as_strided(shape, strides, offset + row)

    def _mask(
        self, count: int, window: int | None, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Additive mask [queries, count] over the last `count` tokens."""
        mask = self._masks.get(window)
        if mask is None:
            at = torch.arange(count - self.span.queries, count, device=device)[:, None]
            key_at = torch.arange(count, device=device)
            hidden = key_at > at
            if window is not None:
                hidden |= key_at <= at - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
            mask = self._masks[window] = mask.masked_fill_(hidden, float("-inf"))
        return mask


def _explicit(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scoring: Scoring
) -> Tensor:
    """What torch's fused attention lacks, in float32: soft caps and sinks.

    q [T, kv_heads, share, head_dim]; keys and values [kv_heads, n, head_dim]; mask [T, n].
    """
    rows = q.float().permute(1, 2, 0, 3)  # [kv_heads, share, T, head_dim]
    scores = rows @ keys.float()[:, None].mT * scoring.scale  # [kv_heads, share, T, n]
    if scoring.soft_cap is not None:
        scores = scoring.soft_cap * torch.tanh(scores / scoring.soft_cap)
    if mask is not None:
        scores = scores + mask
    count = scores.shape[-1]
    if scoring.sinks is not None:
        column = scoring.sinks.view(*scores.shape[:2], 1, 1).expand(-1, -1, scores.shape[2], -1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1)[..., :count]
    y = weights @ values.float()[:, None]
    return y.permute(2, 0, 1, 3).to(q.dtype).contiguous()
