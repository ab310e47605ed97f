"""Triton kernel of paged attention for spans of many tokens, several of them in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from tersor.kernels.attention.triton import (
    BEFORE,
    CONTEXT,
    FIELDS,
    FIRST_ROW,
    PAGES_AT,
    QUERIES,
    attend_range,
    normalized,
)


@triton.jit(do_not_specialize=["spans", "window"])
def prefill_kernel(
    q_ptr,  # [T, heads, HEAD_DIM] in the strides that follow
    stride_token,  # in elements
    stride_head,
    kv_ptr,  # [slots, 2, KV_HEADS, HEAD_DIM]
    scales_ptr,  # float32 [slots, 2, KV_HEADS], read if QUANTIZED
    sinks_ptr,  # float32 [heads], read if SINKS
    spans_ptr,  # int32 [spans, FIELDS]
    pages_ptr,  # int32
    out_ptr,  # [T, heads, HEAD_DIM] contiguous
    spans,
    window,
    scale,
    soft_cap,
    QUANTIZED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SINKS: tl.constexpr,
    COMPUTE: tl.constexpr,
    USE_ASM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SHARE: tl.constexpr,  # query heads of a kv head
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    SPANS: tl.constexpr,  # `spans` rounded up to a power of two
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """ROWS consecutive (token, head) pairs of one span, for one kv head; heads vary fastest.

    Grid: (tiles, KV_HEADS). Span i with `before` tokens ahead of it owns the tiles from
    before * SHARE // ROWS + i on, at least as many as it needs: the grid follows from the number
    of tokens and spans alone, and a span's tiles begin at its own first token. Later tiles see
    more context, so they run first.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    index = tl.arange(0, SPANS)
    before = tl.load(spans_ptr + index * FIELDS + BEFORE, mask=index < spans, other=0)
    owned = (before * SHARE // ROWS + index <= tile) & (index < spans)
    span = tl.sum(owned.to(tl.int32), 0) - 1
    record_ptr = spans_ptr + span * FIELDS
    tile -= tl.load(record_ptr + BEFORE) * SHARE // ROWS + span
    queries = tl.load(record_ptr + QUERIES)
    if tile * ROWS >= queries * SHARE:
        return

    context = tl.load(record_ptr + CONTEXT)
    pair = tile * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = pair < queries * SHARE
    cell = inside[:, None] & (column < HEAD_DIM)[None, :]
    earliest = tile * ROWS // SHARE  # token of the span, as are the next two
    latest = tl.minimum((tile * ROWS + ROWS - 1) // SHARE, queries - 1)
    token = tl.minimum(pair // SHARE, latest)
    head = kv_head * SHARE + pair % SHARE
    # 64 bits for where the tile begins; within it 32 are enough, and half as many registers.
    row = (tl.load(record_ptr + FIRST_ROW) + earliest).to(tl.int64)
    near = token - earliest
    offset = near[:, None] * stride_token + head[:, None] * stride_head + column[None, :]
    q = tl.load(q_ptr + row * stride_token + offset, mask=cell, other=0.0).to(COMPUTE)
    start = tl.maximum(context - queries + earliest + 1 - window, 0)
    peak, total, acc = attend_range(
        q, context - queries + token, start, context - queries + latest + 1, window,
        pages_ptr + tl.load(record_ptr + PAGES_AT), kv_ptr, scales_ptr, kv_head, scale, soft_cap,
        True, QUANTIZED, SOFT_CAP, COMPUTE, USE_ASM, KV_HEADS, HEAD_DIM,
        PAGE_TOKENS, ROWS, COLUMNS, TOKENS,
    )  # fmt: skip
    y = normalized(peak, total, acc, sinks_ptr, head, inside, SINKS)
    offset = (near * (KV_HEADS * SHARE) + head)[:, None] * HEAD_DIM + column[None, :]
    out_ptrs = out_ptr + row * (KV_HEADS * SHARE * HEAD_DIM) + offset
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=cell)
