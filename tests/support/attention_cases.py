"""Random passes over a paged cache whose unused slots would poison every result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.kernels.attention import AttentionPlan, Span, paged_attention_reference, quantize_kv

NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """A pass: spans in scattered pages, and everything that `AttentionPlan.attend` takes."""

    spans: Sequence[Span]
    q: Tensor  # [T, num_heads, head_dim], strided as a slice of a qkv product is
    cache: Tensor  # NaN, or an int8 cache's scales, where no token of the spans lies
    page_tokens: int
    options: dict[str, Any]

    @classmethod
    def random(
        cls,
        sizes: Sequence[tuple[int, int]],  # queries and context of each span
        *,
        kv_heads: int = 2,
        share: int = 4,
        head_dim: int = 64,
        page_tokens: int = 16,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: bool = False,
        int8: bool = False,
        dtype: torch.dtype = torch.float32,
        cache_dtype: torch.dtype | None = None,
        device: str = "cpu",
    ) -> AttentionCase:
        rng = torch.Generator().manual_seed(5)
        counts = [-(-context // page_tokens) for _, context in sizes]
        total = sum(counts) + 3
        pages = torch.randperm(total, generator=rng).split([*counts, 3])
        spans = [
            Span(pages=numbers.tolist(), queries=queries, context=context)
            for numbers, (queries, context) in zip(pages, sizes, strict=False)
        ]
        used = torch.zeros(total * page_tokens, dtype=torch.bool)
        for span in spans:
            token = torch.arange(span.context)
            page = torch.tensor(span.pages)[token // page_tokens]
            used[page * page_tokens + token % page_tokens] = True
        unused = ~used.view(total, page_tokens)
        kv = torch.randn(total, page_tokens, 2, kv_heads, head_dim, generator=rng)
        options: dict[str, Any] = {"scale": head_dim**-0.5, "window": window, "soft_cap": soft_cap}
        if sinks:
            options["sinks"] = torch.randn(kv_heads * share, generator=rng).to(device)
        if int8:
            cache, scales = quantize_kv(kv)
            scales[unused] = NAN
            options["kv_scales"] = scales.to(device)
        else:
            cache = kv.to(cache_dtype or dtype)
            cache[unused] = NAN
        tokens = sum(queries for queries, _ in sizes)
        wide = torch.randn(tokens, kv_heads * share + 3, head_dim, generator=rng)
        q = wide.to(dtype).to(device)[:, 1:-2]
        return cls(
            spans=spans, q=q, cache=cache.to(device), page_tokens=page_tokens, options=options
        )

    def expected(self) -> Tensor:
        """By the definition."""
        return paged_attention_reference(self.q, self.cache, self.spans, **self.options)

    def attend(self, chosen: Sequence[int] | None = None, *, kernels: bool | None = None) -> Tensor:
        """By a plan, over all spans or the `chosen` ones in that order."""
        order = range(len(self.spans)) if chosen is None else chosen
        rows = self.q.split([span.queries for span in self.spans])
        plan = AttentionPlan(
            [self.spans[index] for index in order],
            page_tokens=self.page_tokens,
            device=self.cache.device,
            kernels=kernels,
        )
        q = self.q if chosen is None else torch.cat([rows[index] for index in order])
        return plan.attend(q, self.cache, **self.options)
