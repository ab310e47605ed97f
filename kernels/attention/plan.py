"""Paged attention, planned once per pass and used by every layer.

On a GPU the Triton kernels run; on a CPU each sequence is a call of torch's fused attention. Either
way a sequence's result never depends, not in one bit, on which others share its pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tersor.kernels.attention.scoring import Scoring
from tersor.kernels.attention.sequences import SequenceAttention
from tersor.kernels.attention.spans import Span, check_spans
from tersor.kernels.attention.tables import Tables, slots
from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.errors import LayoutError
from tersor.kernels.rotary import Heads, rotate_store

if TYPE_CHECKING:
    from tersor.kernels.attention.launch import KernelPass

CACHE_DTYPES = (*ACTIVATION_DTYPES, torch.int8)


class AttentionPlan:
    """Where one pass over `spans` stores and finds its keys and values. Valid for that pass.

    A layer's cache is a contiguous [num_pages, page_tokens, 2, num_kv_heads, head_dim] in float32,
    bfloat16, or int8. With int8 go `kv_scales`, contiguous float32 [num_pages, page_tokens, 2,
    num_kv_heads] (see `kernels.rotary.quantize`).
    """

    def __init__(
        self,
        spans: Sequence[Span],
        *,
        page_tokens: int,
        device: torch.device,
        kernels: bool | None = None,
    ) -> None:
        """Plans the pass.

        Args:
            spans: the sequences, in the order of their tokens in the pass.
            page_tokens: tokens of a page.
            device: of the cache.
            kernels: whether the Triton kernels run, on a CPU only under their interpreter; None
                decides by the device.

        Raises:
            LayoutError: a span does not fit its pages.
        """
        check_spans(spans, page_tokens)
        self._spans = spans
        self._page_tokens = page_tokens
        self._device = device
        self._counts = [span.queries for span in spans]
        self._tokens = sum(self._counts)
        self._scorings: dict[tuple[float, int | None, float | None], Scoring] = {}
        self._checked: tuple[Tensor, Tensor | None] | None = None
        self._kernels: KernelPass | None = None
        if device.type != "cpu" if kernels is None else kernels:
            from tersor.kernels.attention.launch import KernelPass  # imports triton

            tables = Tables.build(spans, page_tokens, device)
            self.slots = tables.slots  # int64 [T]: cache slot of each token of the pass
            self._kernels = KernelPass(tables, page_tokens)
        else:
            self.slots = torch.tensor(slots(spans, page_tokens), device=device)

    def attend_heads(
        self,
        heads: Heads,
        cache: Tensor,
        *,
        scale: float,
        window: int | None,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
        kv_scales: Tensor | None = None,
    ) -> Tensor:
        """Stores keys and values of `heads` in `cache` and attends their queries to it.

        To the same bits as `rotate_store` and `attend`, in one launch on a GPU if every span has
        one token.

        Args:
            heads: of all tokens of the pass.
            cache: one layer; changed at `slots`, as are its `kv_scales`.
            scale: this and what follows: as in `attend`.
            window: as in `attend`.
            soft_cap: as in `attend`.
            sinks: as in `attend`.
            kv_scales: as in `attend`.

        Returns:
            [T, num_heads, head_dim] in heads.dtype, contiguous.

        Raises:
            LayoutError: an operand does not fit the plan.
        """
        self._check_heads(heads, cache, kv_scales)
        if self._kernels is not None and self._kernels.makes_heads(heads):
            scoring = self._scoring(heads.num_heads, cache.device, scale, window, soft_cap, sinks)
            return self._kernels.attend_heads(heads, cache, kv_scales, scoring)
        return self.attend(
            rotate_store(heads, self.slots, cache, kv_scales), cache, scale=scale, window=window,
            soft_cap=soft_cap, sinks=sinks, kv_scales=kv_scales,
        )  # fmt: skip

    def attend(
        self,
        q: Tensor,
        cache: Tensor,
        *,
        scale: float,
        window: int | None,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
        kv_scales: Tensor | None = None,
    ) -> Tensor:
        """Attends q [T, num_heads, head_dim] to the cache, see `paged_attention_reference`.

        Args:
            q: queries of all spans, contiguous in its last dimension.
            cache: one layer.
            scale: factor on the scores.
            window: tokens a token sees, itself included; None is unbounded.
            soft_cap: cap(s) = soft_cap * tanh(s / soft_cap) on the scores, or None.
            sinks: float32 [num_heads], one more score per head whose weight meets no value.
            kv_scales: of an int8 cache.

        Returns:
            [T, num_heads, head_dim] in q.dtype, contiguous.

        Raises:
            LayoutError: an operand does not fit the plan.
        """
        self._check(q, cache, kv_scales)
        scoring = self._scoring(q.shape[1], q.device, scale, window, soft_cap, sinks)
        if self._kernels is not None:
            return self._kernels.attend(_dense_heads(q), cache, kv_scales, scoring)
        heads = q.view(q.shape[0], cache.shape[3], -1, q.shape[2])  # [T, kv_heads, share, head_dim]
        outputs = [
            sequence.attend(part, cache, kv_scales, scoring)
            for sequence, part in zip(self._sequences, heads.split(self._counts), strict=True)
        ]
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return out.view(q.shape)

    @cached_property
    def _sequences(self) -> list[SequenceAttention]:
        return [SequenceAttention(span, self._page_tokens, self._device) for span in self._spans]

    def _check(self, q: Tensor, cache: Tensor, kv_scales: Tensor | None) -> None:
        if q.dim() != 3 or q.shape[0] != self._tokens or q.dtype not in ACTIVATION_DTYPES:
            raise LayoutError(
                f"q is {q.dtype} {list(q.shape)}, expected float32 or bfloat16 "
                f"[{self._tokens}, num_heads, head_dim]"
            )
        self._check_cache(cache, kv_scales)
        if q.shape[1] % cache.shape[3] or q.shape[2] != cache.shape[4] or q.device != cache.device:
            raise LayoutError(
                f"q {list(q.shape)} on {q.device} does not fit cache {list(cache.shape)} on "
                f"{cache.device}"
            )

    def _scoring(
        self,
        num_heads: int,
        device: torch.device,
        scale: float,
        window: int | None,
        soft_cap: float | None,
        sinks: Tensor | None,
    ) -> Scoring:
        """The layer's softmax; checked once for layers that are alike."""
        known = self._scorings.get((scale, window, soft_cap)) if sinks is None else None
        if known is None:
            known = Scoring(scale=scale, window=window, soft_cap=soft_cap, sinks=sinks)
            known.check(num_heads, device)
            if sinks is None:
                self._scorings[scale, window, soft_cap] = known
        return known

    def _check_heads(self, heads: Heads, cache: Tensor, kv_scales: Tensor | None) -> None:
        self._check_cache(cache, kv_scales)
        tokens, kv_heads = heads.qkv.shape[1], heads.num_kv_heads
        if tokens != self._tokens or kv_heads != cache.shape[3] or heads.num_heads % kv_heads:
            raise LayoutError(
                f"{heads.num_heads} heads and {kv_heads} kv heads of {tokens} tokens do not fit "
                f"cache {list(cache.shape)} in a pass of {self._tokens} tokens"
            )
        if heads.qkv.device != cache.device:
            raise LayoutError(f"heads are on {heads.qkv.device}, the cache on {cache.device}")

    def _check_cache(self, cache: Tensor, kv_scales: Tensor | None) -> None:
        if (
            self._checked is not None
            and cache is self._checked[0]
            and kv_scales is self._checked[1]
        ):
            return  # `attend_heads` has just seen them
        if cache.dim() != 5 or cache.shape[1:3] != (self._page_tokens, 2):
            raise LayoutError(
                f"cache is {list(cache.shape)}, expected "
                f"[num_pages, {self._page_tokens}, 2, num_kv_heads, head_dim]"
            )
        if not cache.is_contiguous() or cache.dtype not in CACHE_DTYPES:
            raise LayoutError(
                f"cache is {cache.dtype} with strides {list(cache.stride())}, expected float32, "
                "bfloat16 or int8, contiguous"
            )
        if (cache.dtype == torch.int8) != (kv_scales is not None):
            raise LayoutError(f"cache is {cache.dtype}; an int8 cache, and no other, has kv_scales")
        if kv_scales is not None:
            check_tensor(
                "kv_scales",
                kv_scales,
                shape=tuple(cache.shape[:4]),
                dtypes=(torch.float32,),
                device=cache.device,
            )
        self._checked = (cache, kv_scales)


def _dense_heads(x: Tensor) -> Tensor:
    """Gives x [T, heads, head_dim] with a head's elements side by side, as kernels read them."""
    return x if x.stride(2) == 1 else x.contiguous()
