"""Launches the Triton kernels of paged attention over the tables of one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.attention.config import (
    DECODE_STAGES,
    DECODE_WARPS,
    MAX_HEAD_DIM,
    MAX_SEGMENTS,
    MAX_SHARE,
    MIN_SEGMENT_TOKENS,
    PREFILL_STAGES,
    decode_tile,
    padded,
    prefill_tile,
)
from tersor.kernels.attention.decode.triton import decode_kernel
from tersor.kernels.attention.prefill.triton import prefill_kernel
from tersor.kernels.attention.scoring import Scoring
from tersor.kernels.attention.store.triton import store_kernel
from tersor.kernels.attention.tables import Tables
from tersor.kernels.errors import LayoutError
from tersor.kernels.gemv.triton import check_device, has_inline_asm, register_options

UNBOUNDED = 2**31 - 1  # a window that no context fills


class KernelPass:
    """The kernels over one pass. Its layers run one after the other, on one stream."""

    def __init__(self, tables: Tables, page_tokens: int) -> None:
        self._tables = tables
        self._page_tokens = page_tokens
        self._partials: _Partials | None = None

    def store(self, cache: Tensor, kv_scales: Tensor | None, k: Tensor, v: Tensor) -> None:
        """Writes k, v [T, kv_heads, head_dim] into `cache`, and their scales if it is int8."""
        check_device(cache.device)
        kv_heads, head_dim = cache.shape[3:]
        store_kernel[(k.shape[0], 2)](
            k,
            v,
            self._tables.slots,
            cache,
            cache if kv_scales is None else kv_scales,
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            QUANTIZED=kv_scales is not None,
            KV_HEADS=kv_heads,
            HEAD_DIM=head_dim,
            HEADS=triton.next_power_of_2(kv_heads),
            COLUMNS=padded(head_dim),
            num_warps=4 if kv_heads * head_dim >= 1024 else 1,
        )

    def attend(
        self, q: Tensor, cache: Tensor, kv_scales: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Attends q [T, num_heads, head_dim], whose last dimension is contiguous, to `cache`."""
        check_device(cache.device)
        kv_heads, head_dim = cache.shape[3:]
        share = q.shape[1] // kv_heads
        if share > MAX_SHARE or head_dim > MAX_HEAD_DIM:
            raise LayoutError(
                f"{share} query heads of {head_dim} per kv head, expected at most {MAX_SHARE} of "
                f"at most {MAX_HEAD_DIM}; run this model on the CPU"
            )
        if kv_scales is not None and head_dim % 2:
            raise LayoutError(f"heads of {head_dim}, expected an even size for an int8 cache")
        # The interpreter's bf16 arithmetic is wrong without saying so.
        narrow = q.dtype == torch.bfloat16 and q.device.type != "cpu"
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        scales = cache if kv_scales is None else kv_scales
        constants = {
            "QUANTIZED": kv_scales is not None,
            "SOFT_CAP": scoring.soft_cap is not None,
            "SINKS": scoring.sinks is not None,
            "COMPUTE": tl.bfloat16 if narrow else tl.float32,
            "USE_ASM": narrow and has_inline_asm(q.device),
            "KV_HEADS": kv_heads,
            "SHARE": share,
            "HEAD_DIM": head_dim,
            "PAGE_TOKENS": self._page_tokens,
        }
        if len(self._tables.decode):
            self._decode(q, cache, scales, scoring, out, constants)
        if len(self._tables.prefill):
            self._prefill(q, cache, scales, scoring, out, constants)
        return out

    def _decode(
        self,
        q: Tensor,
        cache: Tensor,
        scales: Tensor,
        scoring: Scoring,
        out: Tensor,
        constants: dict[str, object],
    ) -> None:
        tables = self._tables
        count = len(tables.decode)
        kv_heads, head_dim = cache.shape[3:]
        share = q.shape[1] // kv_heads
        if self._partials is None or not self._partials.fits(kv_heads, share, head_dim):
            self._partials = _Partials(tables, kv_heads, share, head_dim, q.device)
        partials = self._partials
        tile = decode_tile(share, head_dim, cache.element_size())
        share_rows = triton.next_power_of_2(share)
        decode_kernel[(kv_heads, tables.segments, count)](
            q,
            cache,
            scales,
            q if scoring.sinks is None else scoring.sinks,
            tables.decode,
            tables.pages,
            out,
            partials.sums,
            partials.stats,
            partials.arrived,
            q.stride(0),
            q.stride(1),
            scoring.window or UNBOUNDED,
            float(scoring.scale),
            float(scoring.soft_cap or 1.0),
            **constants,
            SEGMENT_TOKENS=MIN_SEGMENT_TOKENS,
            SEGMENTS=MAX_SEGMENTS,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            TOKENS=tile.tokens,
            SHARE_ROWS=share_rows,
            AT_ONCE=at_once(share_rows, tile.columns),
            num_warps=tile.warps,
            num_stages=DECODE_STAGES,
            **register_options(q.device),
        )

    def _prefill(
        self,
        q: Tensor,
        cache: Tensor,
        scales: Tensor,
        scoring: Scoring,
        out: Tensor,
        constants: dict[str, object],
    ) -> None:
        tables = self._tables
        count = len(tables.prefill)
        kv_heads, head_dim = cache.shape[3:]
        share = q.shape[1] // kv_heads
        tile = prefill_tile(head_dim, cache.element_size())
        tiles = tables.prefill_tokens * share // tile.rows + count
        prefill_kernel[(tiles, kv_heads)](
            q,
            cache,
            scales,
            q if scoring.sinks is None else scoring.sinks,
            tables.prefill,
            tables.pages,
            out,
            q.stride(0),
            q.stride(1),
            count,
            scoring.window or UNBOUNDED,
            float(scoring.scale),
            float(scoring.soft_cap or 1.0),
            **constants,
            SPANS=triton.next_power_of_2(count),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            TOKENS=tile.tokens,
            num_warps=tile.warps,
            num_stages=PREFILL_STAGES,
            **register_options(q.device),
        )


class _Partials:
    """Where decoding programs leave the results of segments; every layer of a pass reuses it."""

    def __init__(
        self, tables: Tables, kv_heads: int, share: int, head_dim: int, device: torch.device
    ) -> None:
        parts = (tables.partials, kv_heads)
        self.sums = torch.empty(*parts, share, head_dim, dtype=torch.float32, device=device)
        self.stats = torch.empty(*parts, 2, share, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(len(tables.decode), kv_heads, dtype=torch.int32, device=device)

    def fits(self, kv_heads: int, share: int, head_dim: int) -> bool:
        return self.sums.shape[1:] == (kv_heads, share, head_dim)


def at_once(share_rows: int, columns: int) -> int:
    """Segments combined in one step: 32 float32 of a thread, whose loads are all in flight."""
    return min(16, max(1, 32 * 32 * DECODE_WARPS // (share_rows * columns)))
