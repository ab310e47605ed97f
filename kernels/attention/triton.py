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


# Of two int16 words, the low and the high bytes as bf16. A bf16 with exponent 7 counts 128, 129, …
# in its seven bits: 128 + (code & 127) and -(128 + (code & 128)) add up to the code, exactly.
CODE_PAIRS_ASM = tl.constexpr("""
{
.reg .b32 high, bits, sign, one;
mov.b32 one, 0x3F803F80;
shr.u32 high, $2, 8;
lop3.b32 bits, $2, 0x007F007F, 0x43004300, 0xEA;
lop3.b32 sign, $2, 0x00800080, 0xC300C300, 0xEA;
fma.rn.bf16x2 $0, bits, one, sign;
lop3.b32 bits, high, 0x007F007F, 0x43004300, 0xEA;
lop3.b32 sign, high, 0x00800080, 0xC300C300, 0xEA;
fma.rn.bf16x2 $1, bits, one, sign;
}
""")


@triton.jit
def code_pairs(words, COMPUTE: tl.constexpr, USE_ASM: tl.constexpr):
    """Codes of int16 `words` in COMPUTE: those in the low bytes, and those in the high bytes."""
    if USE_ASM:
        low, high = tl.inline_asm_elementwise(
            CODE_PAIRS_ASM, "=r,=r,r", [words], (tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    else:
        low = ((words << 8) >> 8).to(COMPUTE)
        high = (words >> 8).to(COMPUTE)
    return low, high


@triton.jit
def attend_range(
    q,  # COMPUTE [ROWS, COLUMNS]
    at,  # int32 [ROWS], position of the row's token
    start,  # first token that is read
    stop,  # and the end; all of them have been stored
    window,
    pages_ptr,  # int32, this sequence's
    kv_ptr,  # [slots, 2, KV_HEADS, HEAD_DIM], int8 if QUANTIZED
    scales_ptr,  # float32 [slots, 2, KV_HEADS], read if QUANTIZED
    kv_head,
    scale,
    soft_cap,
    CAUSAL: tl.constexpr,  # else every row sees the whole range
    QUANTIZED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16 or fp32; fp32 in the interpreter
    USE_ASM: tl.constexpr,  # NVIDIA's instructions; COMPUTE is bf16
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Softmax over tokens start … stop-1 so far: peak and total [ROWS], acc [ROWS, COLUMNS].

    What is behind `stop` is never read: a NaN in an unused slot would pass through any mask.

    int8 codes are read two by two, as words, and even and odd columns multiplied apart: bytes
    cannot be transposed on their way to the tensor cores (one load and two permutations each).
    """
    lane = tl.arange(0, TOKENS)
    peak = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    if QUANTIZED:
        WIDTH: tl.constexpr = HEAD_DIM // 2
        column = tl.arange(0, COLUMNS // 2)
        rows_ptr = kv_ptr.to(tl.pointer_type(tl.int16))
        q_even, q_odd = q.reshape(ROWS, COLUMNS // 2, 2).split()
        odd = tl.zeros((ROWS, COLUMNS // 2), dtype=tl.float32)
        acc = tl.zeros((ROWS, COLUMNS // 2), dtype=tl.float32)
    else:
        WIDTH: tl.constexpr = HEAD_DIM
        column = tl.arange(0, COLUMNS)
        rows_ptr = kv_ptr
        acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    factor = scale * (2.0 / soft_cap) if SOFT_CAP else scale * LOG2E
    for first in range(start, stop, TOKENS):
        token = first + lane
        # Beyond the end the last token is read again, and not seen: no masks on the loads.
        real = tl.minimum(token, stop - 1)
        page = tl.load(pages_ptr + real // PAGE_TOKENS)
        slot = page.to(tl.int64) * PAGE_TOKENS + real % PAGE_TOKENS
        key_head = slot * (2 * KV_HEADS) + kv_head
        pointers = rows_ptr + key_head[:, None] * WIDTH + column[None, :]
        if HEAD_DIM == COLUMNS:
            keys = tl.load(pointers)
            values = tl.load(pointers + KV_HEADS * WIDTH)
        else:
            inside = (column < WIDTH)[None, :]
            keys = tl.load(pointers, mask=inside, other=0)
            values = tl.load(pointers + KV_HEADS * WIDTH, mask=inside, other=0)
        if QUANTIZED:
            low, high = code_pairs(keys, COMPUTE, USE_ASM)
            scores = tl.dot(q_even, low.T, input_precision="ieee")
            scores = tl.dot(q_odd, high.T, scores, input_precision="ieee")
            scores *= (tl.load(scales_ptr + key_head) * factor)[None, :]
        else:
            scores = tl.dot(q, keys.to(COMPUTE).T, input_precision="ieee")
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
            weights *= tl.load(scales_ptr + key_head + KV_HEADS)[None, :]
            low, high = code_pairs(values, COMPUTE, USE_ASM)
            narrow = weights.to(COMPUTE)
            acc = tl.dot(narrow, low, acc, input_precision="ieee")
            odd = tl.dot(narrow, high, odd * shrink[:, None], input_precision="ieee")
        else:
            acc = tl.dot(weights.to(COMPUTE), values.to(COMPUTE), acc, input_precision="ieee")
    if QUANTIZED:
        acc = tl.join(acc, odd).reshape(ROWS, COLUMNS)
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
