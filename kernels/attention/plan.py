"""Paged attention over torch's fused attention: planned once per pass, used by every layer.

A sequence's result never depends, not in one bit, on which others share its pass:

- on the CPU each sequence is a call of its own. Contiguous pages are read where they lie; scattered
  ones are gathered first (measured on one core, 300 tokens of 2x64 heads: 14 us in place, 38 us
  gathered, and 38 us per sequence in a padded batch of 32);
- elsewhere launches cost more than padding, so single-token spans are batched by their padded
  number of pages, which is a function of the span's own length alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.kernels.attention.spans import Span, check_spans
from tersor.kernels.errors import LayoutError


class AttentionPlan:
    """Where one pass over `spans` stores and finds its keys and values. Valid for that pass."""

    def __init__(
        self,
        spans: Sequence[Span],
        *,
        page_tokens: int,
        padding_page: int,
        device: torch.device,
        batched: bool | None = None,
    ) -> None:
        """Plans the pass.

        Args:
            spans: the sequences, in the order of their tokens in the pass.
            page_tokens: tokens of a page.
            padding_page: a page that always holds finite numbers; read, but never weighed in.
            device: of the cache.
            batched: whether single-token spans are batched; None decides by the device.

        Raises:
            LayoutError: a span does not fit its pages.
        """
        check_spans(spans, page_tokens)
        self._page_tokens = page_tokens
        self._padding_page = padding_page
        self._device = device
        self._counts = [span.queries for span in spans]
        self._tokens = sum(self._counts)
        self._slots = torch.tensor(_slots(spans, page_tokens), device=device)  # [T]
        batched = device.type != "cpu" if batched is None else batched
        self._alone: list[_Alone] = []
        self._batched: list[tuple[int, Span]] = []  # first row, span
        first = 0
        for span in spans:
            if batched and span.queries == 1:
                self._batched.append((first, span))
            else:
                self._alone.append(_Alone(span, first, page_tokens, device))
            first += span.queries
        self._groups: dict[int | None, list[_Group]] = {}

    def store(self, cache: Tensor, k: Tensor, v: Tensor) -> None:
        """Writes k, v [T, num_kv_heads, head_dim] of the pass into one layer's `cache`."""
        flat = cache.view(-1, *cache.shape[2:])  # [slots, 2, kv_heads, head_dim]
        flat.select(1, 0).index_copy_(0, self._slots, k.to(cache.dtype))
        flat.select(1, 1).index_copy_(0, self._slots, v.to(cache.dtype))

    def attend(self, q: Tensor, cache: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Attends q [T, num_heads, head_dim] to the cache, see `paged_attention_reference`.

        Args:
            q: queries of all spans, contiguous in its last dimension; dtype of the cache.
            cache: one layer, [num_pages, page_tokens, 2, num_kv_heads, head_dim], contiguous.
            scale: factor on the scores.
            window: tokens a token sees, itself included; None is unbounded.

        Returns:
            [T, num_heads, head_dim] in q.dtype.

        Raises:
            LayoutError: an operand does not fit the plan.
        """
        self._check(q, cache)
        kv_heads = cache.shape[3]
        heads = q.view(q.shape[0], kv_heads, -1, q.shape[2])  # [T, kv_heads, share, head_dim]
        if not self._batched:
            parts = heads.split(self._counts)
            outputs = [
                item.attend(part, cache, scale, window)
                for item, part in zip(self._alone, parts, strict=True)
            ]
            out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
            return out.view(q.shape)
        out = torch.empty_like(heads)
        for item in self._alone:
            rows = slice(item.first, item.first + item.span.queries)
            out[rows] = item.attend(heads[rows], cache, scale, window)
        for group in self._grouped(window):
            group.attend(heads, cache, scale, out)
        return out.view(q.shape)

    def _check(self, q: Tensor, cache: Tensor) -> None:
        if q.dim() != 3 or q.shape[0] != self._tokens:
            raise LayoutError(
                f"q is {list(q.shape)}, expected [{self._tokens}, num_heads, head_dim]"
            )
        if cache.dim() != 5 or cache.shape[1:3] != (self._page_tokens, 2):
            raise LayoutError(
                f"cache is {list(cache.shape)}, expected "
                f"[num_pages, {self._page_tokens}, 2, num_kv_heads, head_dim]"
            )
        if not cache.is_contiguous() or q.dtype != cache.dtype:
            raise LayoutError(f"cache must be contiguous and of q's dtype {q.dtype}")
        if q.shape[1] % cache.shape[3] or q.shape[2] != cache.shape[4]:
            raise LayoutError(f"q {list(q.shape)} does not fit cache {list(cache.shape)}")

    def _grouped(self, window: int | None) -> list[_Group]:
        """The batched spans by padded number of pages, for one window; made by its first layer."""
        groups = self._groups.get(window)
        if groups is None:
            members: dict[int, list[tuple[int, Span]]] = {}
            for row, span in self._batched:
                pages = len(_visible(span, self._page_tokens, window))
                members.setdefault(_padded(pages), []).append((row, span))
            groups = self._groups[window] = [
                _Group(rows, pages, window, self._page_tokens, self._padding_page, self._device)
                for pages, rows in sorted(members.items())
            ]
        return groups


class _Alone:
    """One sequence with a call of its own."""

    def __init__(self, span: Span, first: int, page_tokens: int, device: torch.device) -> None:
        self.span = span
        self.first = first
        pages = span.pages[: -(-span.context // page_tokens)]
        self._origin = pages[0] * page_tokens  # slot of token 0, if contiguous
        self._pages = None if span.contiguous else torch.tensor(pages, device=device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, q: Tensor, cache: Tensor, scale: float, window: int | None) -> Tensor:
        """Attends q [queries, kv_heads, share, head_dim]; the same shape comes back, contiguous."""
        span = self.span
        low = 0 if window is None else max(0, span.start + 1 - window)
        keys, values = self._keys_values(cache, low)  # [1, kv_heads, n, head_dim]
        if span.queries == 1:  # sees every key, and the heads of a kv head are rows of one query
            return F.scaled_dot_product_attention(q, keys, values, scale=scale)
        count = keys.shape[2]
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

    def _keys_values(self, cache: Tensor, low: int) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens `low` … context-1."""
        kv_heads, head_dim = cache.shape[3:]
        row = kv_heads * head_dim
        first = self._origin + low
        if self._pages is not None:
            cache = cache.index_select(0, self._pages)
            first = low
        shape = (1, kv_heads, self.span.context - low, head_dim)
        strides = (0, head_dim, 2 * row, 1)
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


@dataclass(frozen=True, slots=True)
class _Visible:
    """The pages a single-token span reads: `span.pages[low : high]`."""

    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low


class _Group:
    """Single-token spans padded to the same number of pages."""

    def __init__(
        self,
        members: Sequence[tuple[int, Span]],
        pages: int,
        window: int | None,
        page_tokens: int,
        padding_page: int,
        device: torch.device,
    ) -> None:
        table: list[int] = []
        bounds: list[tuple[int, int]] = []  # first and end of what is seen, in gathered tokens
        for _, span in members:
            visible = _visible(span, page_tokens, window)
            padding = [padding_page] * (pages - len(visible))
            table += [*span.pages[visible.low : visible.high], *padding]
            low = 0 if window is None else max(0, span.context - window)
            skipped = visible.low * page_tokens
            bounds.append((low - skipped, span.context - skipped))
        self._table = torch.tensor(table, device=device)  # [B * pages]
        self._rows = torch.tensor([row for row, _ in members], device=device)  # [B]
        limits = torch.tensor(bounds, device=device)[:, :, None]  # [B, 2, 1]
        at = torch.arange(pages * page_tokens, device=device)
        seen = (at >= limits[:, 0]) & (at < limits[:, 1])  # [B, pages * page_tokens]
        self._mask = seen[:, None, None]

    def attend(self, q: Tensor, cache: Tensor, scale: float, out: Tensor) -> None:
        count = self._rows.shape[0]
        kv_heads, head_dim = cache.shape[3:]
        kv = cache.index_select(0, self._table)
        kv = kv.view(count, -1, 2, kv_heads, head_dim).permute(2, 0, 3, 1, 4)
        queries = q.index_select(0, self._rows)  # [B, kv_heads, share, head_dim]
        y = F.scaled_dot_product_attention(queries, kv[0], kv[1], attn_mask=self._mask, scale=scale)
        out.index_copy_(0, self._rows, y)


def _visible(span: Span, page_tokens: int, window: int | None) -> _Visible:
    low = 0 if window is None else max(0, span.context - window) // page_tokens
    return _Visible(low, -(-span.context // page_tokens))


def _padded(pages: int) -> int:
    """`pages` rounded up so that at most a quarter is padding and few different sizes exist."""
    step = max(1, 1 << (pages.bit_length() - 3)) if pages > 4 else 1
    return -(-pages // step) * step


def _slots(spans: Sequence[Span], page_tokens: int) -> list[int]:
    """The cache slot of each token of the pass."""
    return [
        span.pages[token // page_tokens] * page_tokens + token % page_tokens
        for span in spans
        for token in range(span.start, span.context)
    ]
