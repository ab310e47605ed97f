"""Triton kernels of paged attention for one token per sequence, split along the context."""

from __future__ import annotations

import triton
import triton.language as tl

from tersor.kernels.attention.triton import (
    BEFORE,
    CONTEXT,
    FIELDS,
    FIRST_ROW,
    PAGES_AT,
    attend_range,
    normalized,
)
from tersor.kernels.rotary.triton import load_heads, store_kv


@triton.jit(do_not_specialize=["window"])
def decode_kernel(
    q_ptr,  # [T, heads, HEAD_DIM] in the strides that follow
    stride_token,  # in elements
    stride_head,
    kv_ptr,  # [slots, 2, KV_HEADS, HEAD_DIM]
    scales_ptr,  # float32 [slots, 2, KV_HEADS], read if QUANTIZED
    sinks_ptr,  # float32 [heads], read if SINKS
    spans_ptr,  # int32 [sequences, FIELDS]
    pages_ptr,  # int32
    out_ptr,  # [T, heads, HEAD_DIM] contiguous
    sums_ptr,  # float32 [segments of all sequences, KV_HEADS, SHARE, HEAD_DIM]
    stats_ptr,  # float32 [segments of all sequences, KV_HEADS, 2, SHARE]: peaks, totals
    arrived_ptr,  # int32 [sequences, KV_HEADS], zero before and after
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
    SEGMENT_TOKENS: tl.constexpr,
    SEGMENTS: tl.constexpr,  # most of a sequence
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARE_ROWS: tl.constexpr,  # SHARE rounded up to a power of two
    AT_ONCE: tl.constexpr,  # segments that are combined in one step
):
    """One segment of one sequence, for all query heads of one kv head.

    Grid: (KV_HEADS, segments, sequences). A program whose segment is empty ends at once.
    """
    record_ptr = spans_ptr + tl.program_id(2) * FIELDS
    start, stop, segments = _segment(record_ptr, window, SEGMENT_TOKENS, SEGMENTS, TOKENS)
    if tl.program_id(1) >= segments:
        return

    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    head = tl.program_id(0) * SHARE + row
    cell = (row < SHARE)[:, None] & (column < HEAD_DIM)[None, :]
    token = tl.load(record_ptr + FIRST_ROW).to(tl.int64)
    q_ptrs = q_ptr + token * stride_token + head[:, None] * stride_head + column[None, :]
    q = tl.load(q_ptrs, mask=cell, other=0.0).to(COMPUTE)
    _attend_segment(
        q, start, stop, segments, record_ptr, kv_ptr, scales_ptr, sinks_ptr, pages_ptr, out_ptr,
        sums_ptr, stats_ptr, arrived_ptr, window, scale, soft_cap, QUANTIZED, SOFT_CAP, SINKS,
        COMPUTE, USE_ASM, KV_HEADS, SHARE, HEAD_DIM, PAGE_TOKENS, SEGMENTS, ROWS, COLUMNS, TOKENS,
        SHARE_ROWS, AT_ONCE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "window"])
def decode_heads_kernel(
    qkv_ptr,  # [SPLITS, tokens, (KV_HEADS * SHARE + 2 * KV_HEADS) * HEAD_DIM]
    cos_ptr,  # this and what follows to eps: as in `rotary.triton.load_heads`
    sin_ptr,
    q_gain_ptr,  # [HEAD_DIM], read if NORM
    k_gain_ptr,
    tokens,
    table_stride,
    eps,
    kv_ptr,  # [slots, 2, KV_HEADS, HEAD_DIM]; written, too
    scales_ptr,  # float32 [slots, 2, KV_HEADS], read and written if QUANTIZED
    sinks_ptr,  # float32 [heads], read if SINKS
    spans_ptr,  # int32 [sequences, FIELDS]
    pages_ptr,  # int32
    out_ptr,  # [T, heads, HEAD_DIM] contiguous
    sums_ptr,  # float32 [segments of all sequences, KV_HEADS, SHARE, HEAD_DIM]
    stats_ptr,  # float32 [segments of all sequences, KV_HEADS, 2, SHARE]: peaks, totals
    arrived_ptr,  # int32 [sequences, KV_HEADS], zero before and after
    window,
    scale,
    soft_cap,
    SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    QUANTIZED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SINKS: tl.constexpr,
    COMPUTE: tl.constexpr,
    USE_ASM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SHARE: tl.constexpr,  # query heads of a kv head
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    SEGMENT_TOKENS: tl.constexpr,
    SEGMENTS: tl.constexpr,  # most of a sequence
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARE_ROWS: tl.constexpr,  # SHARE rounded up to a power of two
    AT_ONCE: tl.constexpr,  # segments that are combined in one step
):
    """As `decode_kernel`, with heads as the qkv product leaves them; stores keys and values.

    A program makes the queries that it needs from parts that lie in the L2. A sequence's last token
    is in its last segment and in no other: that program stores its key and value, and then reads
    them with the rest of the segment.
    """
    kv_head = tl.program_id(0)
    record_ptr = spans_ptr + tl.program_id(2) * FIELDS
    start, stop, segments = _segment(record_ptr, window, SEGMENT_TOKENS, SEGMENTS, TOKENS)
    if tl.program_id(1) >= segments:
        return

    token = tl.load(record_ptr + FIRST_ROW).to(tl.int64)
    HEADS: tl.constexpr = KV_HEADS * SHARE
    WIDTH: tl.constexpr = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    if tl.program_id(1) == segments - 1:
        part = tl.arange(0, 2)  # key, value
        x = load_heads(
            qkv_ptr, cos_ptr, sin_ptr, k_gain_ptr, token, HEADS + part * KV_HEADS + kv_head, tokens,
            WIDTH, HEADS + KV_HEADS, table_stride, eps, SPLITS, NORM, HEAD_DIM, 2, COLUMNS,
        )  # fmt: skip
        page = tl.load(pages_ptr + tl.load(record_ptr + PAGES_AT) + (stop - 1) // PAGE_TOKENS)
        slot = page.to(tl.int64) * PAGE_TOKENS + (stop - 1) % PAGE_TOKENS
        at = (slot * 2 + part) * KV_HEADS + kv_head
        store_kv(kv_ptr, scales_ptr, at, x, QUANTIZED, HEAD_DIM, COLUMNS)
        tl.debug_barrier()  # other threads of this program read what this one has stored
    # Rows that pad the share hold its last head again.
    row = tl.minimum(tl.arange(0, SHARE_ROWS), SHARE - 1)
    x = load_heads(
        qkv_ptr, cos_ptr, sin_ptr, q_gain_ptr, token, kv_head * SHARE + row, tokens,
        WIDTH, HEADS, table_stride, eps, SPLITS, NORM, HEAD_DIM, SHARE_ROWS, COLUMNS,
    )  # fmt: skip
    # Rounded as if it had been stored. Rows that pad the tile repeat the others: none is looked at.
    x = x.to(out_ptr.dtype.element_ty).to(COMPUTE)
    x = tl.broadcast_to(x[None, :, :], (ROWS // SHARE_ROWS, SHARE_ROWS, COLUMNS))
    real = (tl.arange(0, ROWS) < SHARE)[:, None]
    q = tl.where(real, x.reshape(ROWS, COLUMNS), 0.0).to(COMPUTE)
    _attend_segment(
        q, start, stop, segments, record_ptr, kv_ptr, scales_ptr, sinks_ptr, pages_ptr, out_ptr,
        sums_ptr, stats_ptr, arrived_ptr, window, scale, soft_cap, QUANTIZED, SOFT_CAP, SINKS,
        COMPUTE, USE_ASM, KV_HEADS, SHARE, HEAD_DIM, PAGE_TOKENS, SEGMENTS, ROWS, COLUMNS, TOKENS,
        SHARE_ROWS, AT_ONCE,
    )  # fmt: skip


@triton.jit
def _segment(
    record_ptr, window, SEGMENT_TOKENS: tl.constexpr, SEGMENTS: tl.constexpr, TOKENS: tl.constexpr
):
    """First token and end of this program's segment, and the number of its sequence's segments.

    A program whose number is not below that has nothing to do. The last segment ends where the
    context does.
    """
    context = tl.load(record_ptr + CONTEXT)
    low = tl.maximum(context - window, 0)
    length = tl.cdiv(tl.cdiv(context - low, SEGMENTS), TOKENS) * TOKENS
    length = tl.maximum(length, SEGMENT_TOKENS)
    start = low + tl.program_id(1) * length
    return start, tl.minimum(start + length, context), tl.cdiv(context - low, length)


@triton.jit
def _attend_segment(
    q,  # COMPUTE [ROWS, COLUMNS]
    start,
    stop,
    segments,
    record_ptr,
    kv_ptr,  # this and what follows: as in the kernels
    scales_ptr,
    sinks_ptr,
    pages_ptr,
    out_ptr,
    sums_ptr,
    stats_ptr,
    arrived_ptr,
    window,
    scale,
    soft_cap,
    QUANTIZED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SINKS: tl.constexpr,
    COMPUTE: tl.constexpr,
    USE_ASM: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARE_ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Attends q to the tokens start … stop-1.

    The program that arrives last adds the segments up, in their order: which one that is changes
    no bit.
    """
    kv_head = tl.program_id(0)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    head = kv_head * SHARE + row
    inside = row < SHARE
    cell = inside[:, None] & (column < HEAD_DIM)[None, :]
    token = tl.load(record_ptr + FIRST_ROW).to(tl.int64)
    peak, total, acc = attend_range(
        q, tl.zeros((ROWS,), dtype=tl.int32), start, stop, window,
        pages_ptr + tl.load(record_ptr + PAGES_AT), kv_ptr, scales_ptr, kv_head, scale, soft_cap,
        False, QUANTIZED, SOFT_CAP, COMPUTE, USE_ASM, KV_HEADS, HEAD_DIM,
        PAGE_TOKENS, ROWS, COLUMNS, TOKENS,
    )  # fmt: skip
    if segments == 1:
        y = normalized(peak, total, acc, sinks_ptr, head, inside, SINKS)
        offset = (token * (KV_HEADS * SHARE) + head)[:, None] * HEAD_DIM + column[None, :]
        tl.store(out_ptr + offset, y.to(out_ptr.dtype.element_ty), mask=cell)
    else:
        before = tl.load(record_ptr + BEFORE)
        part = (before + tl.program_id(1)).to(tl.int64) * KV_HEADS + kv_head
        tl.store(stats_ptr + part * (2 * SHARE) + row, peak, mask=inside)
        tl.store(stats_ptr + part * (2 * SHARE) + SHARE + row, total, mask=inside)
        sums = sums_ptr + (part * SHARE + row)[:, None] * HEAD_DIM + column[None, :]
        tl.store(sums, acc, mask=cell)
        # One thread arrives for all: their stores must be before it. Its release makes them visible
        # to the program that arrives last, whose acquire comes before its loads, again for all.
        tl.debug_barrier()
        counter = arrived_ptr + tl.program_id(2) * KV_HEADS + kv_head
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == segments - 1:
            tl.store(counter, 0)  # for the next layer
            _combine(
                before, segments, kv_head, token, sinks_ptr, out_ptr, sums_ptr, stats_ptr,
                SINKS, KV_HEADS, SHARE, HEAD_DIM, SEGMENTS, COLUMNS, SHARE_ROWS, AT_ONCE,
            )  # fmt: skip


@triton.jit
def _combine(
    before,  # segments of the sequences before this one
    segments,
    kv_head,
    token,
    sinks_ptr,
    out_ptr,
    sums_ptr,
    stats_ptr,
    SINKS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SEGMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARE_ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Adds up the segments of one sequence and kv head, and stores the result.

    ".cg" reads past the L1, where a neighbour's early read might have left a line.
    """
    row = tl.arange(0, SHARE_ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < SHARE
    part = (before + tl.arange(0, SEGMENTS)).to(tl.int64) * KV_HEADS + kv_head
    stats = stats_ptr + (part * (2 * SHARE))[:, None] + row[None, :]  # [SEGMENTS, SHARE_ROWS]
    real = (tl.arange(0, SEGMENTS) < segments)[:, None] & inside[None, :]
    peaks = tl.load(stats, mask=real, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(stats + SHARE, mask=real, other=0.0, cache_modifier=".cg")
    peak = tl.max(peaks, 0)
    peak = tl.where(inside, peak, 0.0)
    total = tl.sum(totals * tl.exp2(peaks - peak[None, :]), 0)
    acc = tl.zeros((SHARE_ROWS, COLUMNS), dtype=tl.float32)
    for first in range(0, segments, AT_ONCE):
        some = first + tl.arange(0, AT_ONCE)
        here = (some < segments)[:, None] & inside[None, :]  # [AT_ONCE, SHARE_ROWS]
        at = ((before + some).to(tl.int64) * KV_HEADS + kv_head)[:, None]
        peak_ptrs = stats_ptr + at * (2 * SHARE) + row[None, :]
        some_peaks = tl.load(peak_ptrs, mask=here, other=float("-inf"), cache_modifier=".cg")
        weights = tl.exp2(some_peaks - peak[None, :])
        sums = sums_ptr + (at * SHARE + row[None, :])[:, :, None] * HEAD_DIM + column[None, None, :]
        cell = here[:, :, None] & (column < HEAD_DIM)[None, None, :]
        parts = tl.load(sums, mask=cell, other=0.0, cache_modifier=".cg")
        acc += tl.sum(parts * weights[:, :, None], 0)
    head = kv_head * SHARE + row
    total = tl.where(inside, total, 1.0)
    y = normalized(peak, total, acc, sinks_ptr, head, inside, SINKS)
    out_ptrs = out_ptr + (token * (KV_HEADS * SHARE) + head)[:, None] * HEAD_DIM + column[None, :]
    stored = inside[:, None] & (column < HEAD_DIM)[None, :]
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=stored)
