"""Launches the Triton kernels of paged attention over the tables of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.attention.config import (
    DECODE_STAGES,
    DECODE_WARPS,
    MADE_REGISTERS,
    MAX_HEAD_DIM,
    MAX_MADE,
    MAX_SEGMENTS,
    MAX_SHARE,
    MIN_SEGMENT_TOKENS,
    PREFILL_STAGES,
    decode_tile,
    padded,
    prefill_tile,
)
from tersor.kernels.attention.decode.triton import decode_heads_kernel, decode_kernel
from tersor.kernels.attention.prefill.triton import prefill_kernel
from tersor.kernels.attention.scoring import Scoring
from tersor.kernels.attention.tables import Tables
from tersor.kernels.errors import LayoutError
from tersor.kernels.gemv.triton import check_device, has_inline_asm, register_options
from tersor.kernels.rotary import Heads
from tersor.kernels.rotary.triton import check_heads

UNBOUNDED = 2**31 - 1  # a window that no context fills


class KernelPass:
    """The kernels over one pass. Its layers run one after the other, on one stream."""

    def __init__(self, tables: Tables, page_tokens: int) -> None:
        self._tables = tables
        self._page_tokens = page_tokens
        self._partials: _Partials | None = None

    def makes_heads(self, heads: Heads) -> bool:
        """Whether `attend_heads` takes `heads`: spans of one token, and tiles that fit."""
        share, head_dim = heads.num_heads // heads.num_kv_heads, heads.rotation.cos.shape[-1]
        elements = triton.next_power_of_2(share) * padded(head_dim)
        return not len(self._tables.prefill) and elements <= MAX_MADE

    def attend_heads(
        self, heads: Heads, cache: Tensor, kv_scales: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Stores keys and values of `heads` in `cache` and attends their queries to it.

        Raises:
            LayoutError: an operand is not what the kernel relies on.
        """
        cos, sin = heads.rotation
        kv_heads, head_dim = cache.shape[3:]
        check_heads(
            heads.qkv, cos, sin, heads.q_gain, heads.k_gain, heads.num_heads, kv_heads, head_dim
        )
        q_gain = heads.qkv if heads.q_gain is None else heads.q_gain
        k_gain = heads.qkv if heads.k_gain is None else heads.k_gain
        tokens = heads.qkv.shape[1]
        source = (heads.qkv, cos, sin, q_gain, k_gain, tokens, cos.stride(0), float(heads.eps))
        out = torch.empty(
            tokens, heads.num_heads, head_dim, dtype=heads.dtype, device=heads.qkv.device
        )
        constants = self._constants(out, cache, kv_scales, scoring)
        constants |= {"SPLITS": heads.qkv.shape[0], "NORM": heads.q_gain is not None}
        options = register_options(out.device, MADE_REGISTERS)
        self._decode(
            decode_heads_kernel, source, cache, kv_scales, scoring, out, constants | options
        )
        return out

    def attend(
        self, q: Tensor, cache: Tensor, kv_scales: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Attends q [T, num_heads, head_dim], whose last dimension is contiguous, to `cache`."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        constants = self._constants(out, cache, kv_scales, scoring)
        source = (q, q.stride(0), q.stride(1))
        if len(self._tables.decode):
            options = register_options(out.device)
            self._decode(decode_kernel, source, cache, kv_scales, scoring, out, constants | options)
        if len(self._tables.prefill):
            self._prefill(source, cache, kv_scales, scoring, out, constants)
        return out

    def _constants(
        self, out: Tensor, cache: Tensor, kv_scales: Tensor | None, scoring: Scoring
    ) -> dict[str, object]:
        """What all kernels are compiled for, once it is known that they can be."""
        check_device(cache.device)
        kv_heads, head_dim = cache.shape[3:]
        share = out.shape[1] // kv_heads
        if share > MAX_SHARE or head_dim > MAX_HEAD_DIM:
            raise LayoutError(
                f"{share} query heads of {head_dim} per kv head, expected at most {MAX_SHARE} of "
                f"at most {MAX_HEAD_DIM}; run this model on the CPU"
            )
        if kv_scales is not None and head_dim % 2:
            raise LayoutError(f"heads of {head_dim}, expected an even size for an int8 cache")
        # The interpreter's bf16 arithmetic is wrong without saying so.
        narrow = out.dtype == torch.bfloat16 and out.device.type != "cpu"
        return {
            "QUANTIZED": kv_scales is not None,
            "SOFT_CAP": scoring.soft_cap is not None,
            "SINKS": scoring.sinks is not None,
            "COMPUTE": tl.bfloat16 if narrow else tl.float32,
            "USE_ASM": narrow and has_inline_asm(out.device),
            "KV_HEADS": kv_heads,
            "SHARE": share,
            "HEAD_DIM": head_dim,
            "PAGE_TOKENS": self._page_tokens,
        }

    def _decode(
        self,
        kernel: Any,
        source: Sequence[object],
        cache: Tensor,
        kv_scales: Tensor | None,
        scoring: Scoring,
        out: Tensor,
        constants: dict[str, object],
    ) -> None:
        """Launches a decode kernel.

        Args:
            kernel: one of decode/triton.py.
            source: its arguments before `kv_ptr`.
            cache: one layer.
            kv_scales: of an int8 cache.
            scoring: of the layer.
            out: [T, num_heads, head_dim], written.
            constants: what the cut of the tile does not say, and options of the launch.
        """
        tables = self._tables
        kv_heads, head_dim = cache.shape[3:]
        share = out.shape[1] // kv_heads
        if self._partials is None or not self._partials.fits(kv_heads, share, head_dim):
            self._partials = _Partials(tables, kv_heads, share, head_dim, out.device)
        partials = self._partials
        tile = decode_tile(share, head_dim, cache.element_size())
        share_rows = triton.next_power_of_2(share)
        kernel[(kv_heads, tables.segments, len(tables.decode))](
            *source,
            cache,
            cache if kv_scales is None else kv_scales,
            out if scoring.sinks is None else scoring.sinks,
            tables.decode,
            tables.pages,
            out,
            partials.sums,
            partials.stats,
            partials.arrived,
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
        )

    def _prefill(
        self,
        source: Sequence[object],
        cache: Tensor,
        kv_scales: Tensor | None,
        scoring: Scoring,
        out: Tensor,
        constants: dict[str, object],
    ) -> None:
        """Launches the prefill kernel; `source`: its arguments before `kv_ptr`."""
        tables = self._tables
        count = len(tables.prefill)
        kv_heads, head_dim = cache.shape[3:]
        share = out.shape[1] // kv_heads
        tile = prefill_tile(head_dim, cache.element_size())
        tiles = tables.prefill_tokens * share // tile.rows + count
        prefill_kernel[(tiles, kv_heads)](
            *source,
            cache,
            cache if kv_scales is None else kv_scales,
            out if scoring.sinks is None else scoring.sinks,
            tables.prefill,
            tables.pages,
            out,
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
            **register_options(out.device),
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
