"""Triton kernel of paged attention for one token per sequence, split along the context."""

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


@triton.jit(do_not_specialize=["window"])
def decode_kernel(
    q_ptr,  # [T, heads, HEAD_DIM] in the strides below
    kv_ptr,  # [slots, 2, KV_HEADS, HEAD_DIM]
    scales_ptr,  # float32 [slots, 2, KV_HEADS], read if QUANTIZED
    sinks_ptr,  # float32 [heads], read if SINKS
    spans_ptr,  # int32 [sequences, FIELDS]
    pages_ptr,  # int32
    out_ptr,  # [T, heads, HEAD_DIM] contiguous
    sums_ptr,  # float32 [segments of all sequences, KV_HEADS, SHARE, HEAD_DIM]
    stats_ptr,  # float32 [segments of all sequences, KV_HEADS, 2, SHARE]: peaks, totals
    arrived_ptr,  # int32 [sequences, KV_HEADS], zero before and after
    stride_token,  # of q, in elements
    stride_head,
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

    Grid: (KV_HEADS, segments, sequences). A program whose segment is empty ends at once. The one
    that arrives last adds the segments up, in their order: which one that is changes no bit.
    """
    kv_head = tl.program_id(0)
    segment = tl.program_id(1)
    sequence = tl.program_id(2)
    record_ptr = spans_ptr + sequence * FIELDS
    context = tl.load(record_ptr + CONTEXT)
    low = tl.maximum(context - window, 0)
    length = tl.cdiv(tl.cdiv(context - low, SEGMENTS), TOKENS) * TOKENS
    length = tl.maximum(length, SEGMENT_TOKENS)
    segments = tl.cdiv(context - low, length)
    if segment >= segments:
        return

    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    head = kv_head * SHARE + row
    inside = row < SHARE
    cell = inside[:, None] & (column < HEAD_DIM)[None, :]
    token = tl.load(record_ptr + FIRST_ROW).to(tl.int64)
    q_ptrs = q_ptr + token * stride_token + head[:, None] * stride_head + column[None, :]
    q = tl.load(q_ptrs, mask=cell, other=0.0).to(COMPUTE)
    start = low + segment * length
    peak, total, acc = attend_range(
        q, tl.zeros((ROWS,), dtype=tl.int32), start, tl.minimum(start + length, context), window,
        pages_ptr + tl.load(record_ptr + PAGES_AT), kv_ptr, scales_ptr, kv_head, scale, soft_cap,
        False, QUANTIZED, SOFT_CAP, COMPUTE, USE_ASM, KV_HEADS, HEAD_DIM,
        PAGE_TOKENS, ROWS, COLUMNS, TOKENS,
    )  # fmt: skip
    out_ptrs = out_ptr + (token * (KV_HEADS * SHARE) + head)[:, None] * HEAD_DIM + column[None, :]
    if segments == 1:
        y = normalized(peak, total, acc, sinks_ptr, head, inside, SINKS)
        tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=cell)
        return

    before = tl.load(record_ptr + BEFORE)
    part = (before + segment).to(tl.int64) * KV_HEADS + kv_head
    tl.store(stats_ptr + part * (2 * SHARE) + row, peak, mask=inside)
    tl.store(stats_ptr + part * (2 * SHARE) + SHARE + row, total, mask=inside)
    sums = sums_ptr + (part * SHARE + row)[:, None] * HEAD_DIM + column[None, :]
    tl.store(sums, acc, mask=cell)
    # One thread arrives for all: their stores must be before it. Its release makes them visible to
    # the program that arrives last, whose acquire comes before its loads, again for all threads.
    tl.debug_barrier()
    counter = arrived_ptr + sequence * KV_HEADS + kv_head
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
