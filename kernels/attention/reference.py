"""Paged attention in plain float32 torch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tersor.kernels.attention.spans import Span, check_spans
from tersor.kernels.rotary.quantize import dequantize_kv


def paged_attention_reference(
    q: Tensor,
    cache: Tensor,
    spans: Sequence[Span],
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """softmax(cap(scale * q @ k.T)) @ v, causal, sequence by sequence.

    Args:
        q: [T, num_heads, head_dim], the tokens of all spans in order.
        cache: [num_pages, page_tokens, 2, num_kv_heads, head_dim], keys then values; holds the
            keys and values of this pass's own tokens too.
        spans: the sequences of the pass; query head h reads kv head
            h // (num_heads / num_kv_heads).
        scale: factor on the scores.
        window: a token sees itself and the window-1 tokens before it; None is unbounded.
        soft_cap: cap(s) = soft_cap * tanh(s / soft_cap); None is cap(s) = s.
        sinks: [num_heads], one more score per head, after the cap, whose weight meets no value.
        kv_scales: float32 [num_pages, page_tokens, 2, num_kv_heads] of an int8 cache.

    Returns:
        [T, num_heads, head_dim] in q.dtype.

    Raises:
        LayoutError: a span does not fit its pages.
    """
    page_tokens = cache.shape[1]
    check_spans(spans, page_tokens)
    share = q.shape[1] // cache.shape[3]
    outputs: list[Tensor] = []
    first = 0
    for span in spans:
        pages = torch.tensor(span.pages, device=cache.device)
        kv = cache[pages].float()
        if kv_scales is not None:
            kv = dequantize_kv(kv, kv_scales[pages], torch.float32)
        kv = kv.flatten(0, 1)[: span.context]
        keys, values = kv.repeat_interleave(share, dim=2).unbind(1)  # [L, heads, head_dim]
        queries = q[first : first + span.queries].float()  # [n, heads, head_dim]
        scores = torch.einsum("nhd,lhd->hnl", queries, keys) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        at = torch.arange(span.start, span.context, device=q.device)[:, None]  # [n, 1]
        key_at = torch.arange(span.context, device=q.device)  # [L]
        hidden = key_at > at
        if window is not None:
            hidden |= key_at <= at - window
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            column = sinks.float()[:, None, None].expand(-1, span.queries, 1)
            scores = torch.cat([scores, column], dim=-1)  # [heads, n, L + 1]
        weights = scores.softmax(-1)[:, :, : span.context]
        outputs.append(torch.einsum("hnl,lhd->nhd", weights, values))
        first += span.queries
    return torch.cat(outputs).to(q.dtype)
