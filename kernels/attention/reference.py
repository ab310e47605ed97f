"""Paged attention in plain float32 torch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tersor.kernels.attention.spans import Span, check_spans


def paged_attention_reference(
    q: Tensor,
    cache: Tensor,
    spans: Sequence[Span],
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """softmax(scale * q @ k.T) @ v, causal, sequence by sequence.

    Args:
        q: [T, num_heads, head_dim], the tokens of all spans in order.
        cache: [num_pages, page_tokens, 2, num_kv_heads, head_dim], keys then values; holds the
            keys and values of this pass's own tokens too.
        spans: the sequences of the pass; query head h reads kv head
            h // (num_heads / num_kv_heads).
        scale: factor on the scores.
        window: a token sees itself and the window-1 tokens before it; None is unbounded.

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
        kv = cache[torch.tensor(span.pages, device=cache.device)].flatten(0, 1)[: span.context]
        keys, values = kv.float().repeat_interleave(share, dim=2).unbind(1)  # [L, heads, head_dim]
        queries = q[first : first + span.queries].float()  # [n, heads, head_dim]
        scores = torch.einsum("nhd,lhd->hnl", queries, keys) * scale
        at = torch.arange(span.start, span.context, device=q.device)[:, None]  # [n, 1]
        key_at = torch.arange(span.context, device=q.device)  # [L]
        hidden = key_at > at
        if window is not None:
            hidden |= key_at <= at - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hnl,lhd->nhd", weights, values))
        first += span.queries
    return torch.cat(outputs).to(q.dtype)
