"""The paged KV cache of one model, and the attention state of a pass over it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tersor.bundle.program import DecoderProgram
from tersor.kernels.attention import AttentionPlan, Span
from tersor.models.contracts import AttentionState
from tersor.runtime.engine.pages import PagePool, PageTable
from tersor.runtime.errors import OutOfMemoryError


class PagedCache:
    """Keys and values of all running sequences, in pages that hold every layer. Not thread-safe."""

    def __init__(
        self,
        program: DecoderProgram,
        *,
        page_tokens: int,
        cache_bytes: int,
        max_sequences: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocates the pool.

        Args:
            program: gives layers, kv heads and head size.
            page_tokens: tokens of a page.
            cache_bytes: device memory of the pool; less is taken if `max_sequences` full contexts
                need less.
            max_sequences: sequences that hold pages at once.
            dtype: of keys and values, that of the activations.
            device: where the cache lies.

        Raises:
            OutOfMemoryError: `cache_bytes` does not hold a single page.
        """
        slot = (2, program.num_kv_heads, program.head_dim)
        page_bytes = page_tokens * program.num_layers * dtype.itemsize * math.prod(slot)
        full = -(-program.max_context // page_tokens) * max_sequences
        total = min(cache_bytes // page_bytes, full)
        if total < 1:
            raise OutOfMemoryError(
                f"a KV cache of {cache_bytes} bytes does not hold one page of {page_bytes} bytes "
                f"({page_tokens} tokens of all layers); raise kv_cache_bytes"
            )
        self.page_tokens = page_tokens
        self.page_bytes = page_bytes
        self.pool = PagePool(total)
        self._device = device
        # One page more than the pool: padding in batched attention. Memory that is not touched is
        # not committed on the CPU, so nothing is zeroed before it is handed out.
        self._kv = torch.empty(
            (program.num_layers, total + 1, page_tokens, *slot), dtype=dtype, device=device
        )
        self._layers = tuple(self._kv.unbind(0))  # [pages, page_tokens, 2, kv_heads, head_dim]
        self._kv[:, total].zero_()

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_tokens)

    def allocate(self, tokens: int) -> PageTable | None:
        """A table for `tokens` tokens; None if there are not enough pages."""
        table = self.pool.allocate(self.pages_for(tokens))
        if table is not None:
            self._clear(table.pages)
        return table

    def extend(self, table: PageTable, tokens: int) -> bool:
        """Makes `table` hold `tokens` tokens; False, and nothing changed, if it cannot."""
        had = len(table.pages)
        missing = self.pages_for(tokens) - had
        if missing <= 0:
            return True
        if not self.pool.extend(table, missing):
            return False
        self._clear(table.pages[had:])
        return True

    def free(self, table: PageTable) -> None:
        """Gives the pages of `table` back."""
        self.pool.free(table)

    def attention(self, spans: Sequence[Span]) -> PagedAttention:
        """The attention state of one pass over `spans`."""
        plan = AttentionPlan(
            spans,
            page_tokens=self.page_tokens,
            padding_page=self.pool.total,
            device=self._device,
        )
        return PagedAttention(self._layers, plan)

    def _clear(self, pages: Sequence[int]) -> None:
        """Zeroes fresh pages.

        Nothing of another request may be found in them, and a NaN there would pass through a mask.
        """
        self._kv.index_fill_(1, torch.tensor(pages, device=self._device), 0.0)


class PagedAttention(AttentionState):
    """Attention of one pass over the paged cache."""

    def __init__(self, layers: Sequence[Tensor], plan: AttentionPlan) -> None:
        self._layers = layers
        self._plan = plan

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        cache = self._layers[layer]
        self._plan.store(cache, k, v)
        return self._plan.attend(q, cache, scale=scale, window=window)
