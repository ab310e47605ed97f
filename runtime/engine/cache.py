"""The paged KV cache of one model, and the attention state of a pass over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from tersor.bundle.program import DecoderProgram
from tersor.kernels.attention import SCALE_BYTES, AttentionPlan, Span
from tersor.kernels.rotary import Heads
from tersor.models.contracts import AttentionState
from tersor.runtime.config import KVCacheDtype
from tersor.runtime.engine.pages import PagePool, PageTable
from tersor.runtime.errors import OutOfMemoryError

_DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.int8}


def resolve_kv_cache_dtype(choice: KVCacheDtype, activations: torch.dtype) -> torch.dtype:
    """The dtype of keys and values: that of the activations where `choice` is "auto"."""
    return activations if choice == "auto" else _DTYPES[choice]


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
            dtype: of keys and values: float32, bfloat16, or int8, which keeps a float32 scale per
                token, kv head, and key or value beside them.
            device: where the cache lies.

        Raises:
            OutOfMemoryError: `cache_bytes` does not hold a single page.
        """
        heads = (2, program.num_kv_heads)
        head_bytes = dtype.itemsize * program.head_dim + SCALE_BYTES * (dtype == torch.int8)
        page_bytes = page_tokens * program.num_layers * math.prod(heads) * head_bytes
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
        # Nothing is zeroed, here or when pages change hands: attention reads what its own sequence
        # has stored and nothing else. Memory that is not touched is not committed on the CPU.
        shape = (program.num_layers, total, page_tokens, *heads)
        kv = torch.empty((*shape, program.head_dim), dtype=dtype, device=device)
        self._layers = kv.unbind(0)  # [pages, page_tokens, 2, kv_heads, head_dim]
        self._scales: tuple[Tensor | None, ...] = (None,) * program.num_layers
        if dtype == torch.int8:
            self._scales = torch.empty(shape, dtype=torch.float32, device=device).unbind(0)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_tokens)

    def allocate(self, tokens: int) -> PageTable | None:
        """A table for `tokens` tokens; None if there are not enough pages."""
        return self.pool.allocate(self.pages_for(tokens))

    def extend(self, table: PageTable, tokens: int) -> bool:
        """Makes `table` hold `tokens` tokens; False, and nothing changed, if it cannot."""
        missing = self.pages_for(tokens) - len(table.pages)
        return missing <= 0 or self.pool.extend(table, missing)

    def free(self, table: PageTable) -> None:
        """Gives the pages of `table` back."""
        self.pool.free(table)

    def attention(self, spans: Sequence[Span]) -> PagedAttention:
        """The attention state of one pass over `spans`."""
        plan = AttentionPlan(spans, page_tokens=self.page_tokens, device=self._device)
        return PagedAttention(self._layers, self._scales, plan)


class PagedAttention(AttentionState):
    """Attention of one pass over the paged cache."""

    def __init__(
        self,
        layers: Sequence[Tensor],
        scales: Sequence[Tensor | None],
        plan: AttentionPlan,
    ) -> None:
        self._layers = layers
        self._scales = scales
        self._plan = plan

    def attend(self, layer: int, heads: Heads, *, scale: float, window: int | None) -> Tensor:
        cache, kv_scales = self._layers[layer], self._scales[layer]
        return self._plan.attend_heads(
            heads, cache, scale=scale, window=window, kv_scales=kv_scales
        )
