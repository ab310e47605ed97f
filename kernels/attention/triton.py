"""What the paged attention kernels share: the walk over keys and values, and the softmax's end.

Scores are kept in units of log2(e), so that exp2, which the hardware has, is exp.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# int32 fields of a span's record (see tables.py)
FIELDS = tl.constexpr(8)
FIRST_ROW = tl.constexpr(0)
QUERIES = tl.constexpr(1)
CONTEXT = tl.constexpr(2)
PAGES_AT = tl.constexpr(3)
BEFORE = tl.constexpr(4)


@triton.jit
def attend_range(
    q,  # COMPUTE [ROWS, COLUMNS]
    at,  # int32 [ROWS], position of the row's token
    start,  # first token that is read
    stop,  # and the end; all of them have been stored
    window,
    pages_ptr,  # int32, this sequence's
    kv_ptr,  # [slots, 2, KV_HEADS, HEAD_DIM]
    scales_ptr,  # float32 [slots, 2, KV_HEADS], read if QUANTIZED
    kv_head,
    scale,
    soft_cap,
    CAUSAL: tl.constexpr,  # else every row sees the whole range
    QUANTIZED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16 or fp32; fp32 in the interpreter
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Softmax over tokens start … stop-1 so far: peak and total [ROWS], acc [ROWS, COLUMNS].

    What is behind `stop` is never read: a NaN in an unused slot would pass through any mask.
    """
    lane = tl.arange(0, TOKENS)
    column = tl.arange(0, COLUMNS)
    peak = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    factor = scale * (2.0 / soft_cap) if SOFT_CAP else scale * LOG2E
    for first in range(start, stop, TOKENS):
        token = first + lane
        # Beyond the end the last token is read again, and not seen: no masks on the loads.
        real = tl.minimum(token, stop - 1)
        page = tl.load(pages_ptr + real // PAGE_TOKENS)
        slot = page.to(tl.int64) * PAGE_TOKENS + real % PAGE_TOKENS
        key_head = slot * (2 * KV_HEADS) + kv_head
        pointers = kv_ptr + key_head[:, None] * HEAD_DIM + column[None, :]
        if HEAD_DIM == COLUMNS:
            keys = tl.load(pointers)
            values = tl.load(pointers + KV_HEADS * HEAD_DIM)
        else:
            inside = (column < HEAD_DIM)[None, :]
            keys = tl.load(pointers, mask=inside, other=0)
            values = tl.load(pointers + KV_HEADS * HEAD_DIM, mask=inside, other=0)
        scores = tl.dot(q, keys.to(COMPUTE).T, input_precision="ieee")
        if QUANTIZED:
            key_scale = tl.load(scales_ptr + key_head)
            scores *= (key_scale * factor)[None, :]
        else:
            scores *= factor
        if SOFT_CAP:
            # tanh(x) = 2 sigmoid(2 x) - 1
            scores = (soft_cap * LOG2E) * (2.0 * tl.sigmoid(scores) - 1.0)
        if CAUSAL:  # 0 <= at - token < window, in one comparison
            seen = (at[:, None] - token[None, :]).to(tl.uint32) < window.to(tl.uint32)
        else:
            seen = (token < stop)[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, 1))
        # A row that has seen nothing yet has no peak: -inf - -inf would be NaN.
        base = tl.where(top == float("-inf"), 0.0, top)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, 1)
        acc *= shrink[:, None]
        peak = top
        if QUANTIZED:
            value_scale = tl.load(scales_ptr + key_head + KV_HEADS)
            weights *= value_scale[None, :]
        acc = tl.dot(weights.to(COMPUTE), values.to(COMPUTE), acc, input_precision="ieee")
    return peak, total, acc


@triton.jit
def normalized(peak, total, acc, sinks_ptr, head, inside, SINKS: tl.constexpr):
    """Rows of acc / total, after the sink of each row's head took its share."""
    if SINKS:
        sink = tl.load(sinks_ptr + head, mask=inside, other=0.0) * LOG2E
        top = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - top)
        total = total * shrink + tl.exp2(sink - top)
        acc *= shrink[:, None]
    return acc / total[:, None]
