"""Triton kernel that writes keys and values into their slots, as int8 codes where asked."""

from __future__ import annotations

import triton
import triton.language as tl

from tersor.kernels.attention import quantize

SMALLEST = tl.constexpr(quantize.SMALLEST)


@triton.jit
def store_kernel(
    k_ptr,  # [T, KV_HEADS, HEAD_DIM] in the strides below
    v_ptr,  # the same
    slots_ptr,  # int64 [T]
    kv_ptr,  # [slots, 2, KV_HEADS, HEAD_DIM]
    scales_ptr,  # float32 [slots, 2, KV_HEADS], written if QUANTIZED
    k_stride_token,  # in elements
    k_stride_head,
    v_stride_token,
    v_stride_head,
    QUANTIZED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,  # KV_HEADS and HEAD_DIM rounded up to powers of two
    COLUMNS: tl.constexpr,
):
    """All heads of one token's keys (program (t, 0)) or values (program (t, 1)). Grid: (T, 2)."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    head = tl.arange(0, HEADS)
    column = tl.arange(0, COLUMNS)
    cell = (head < KV_HEADS)[:, None] & (column < HEAD_DIM)[None, :]
    if part == 0:
        x_ptrs = k_ptr + token * k_stride_token + head[:, None] * k_stride_head
    else:
        x_ptrs = v_ptr + token * v_stride_token + head[:, None] * v_stride_head
    x = tl.load(x_ptrs + column[None, :], mask=cell, other=0.0).to(tl.float32)
    at = (tl.load(slots_ptr + token) * 2 + part) * KV_HEADS + head  # [HEADS]
    kv_ptrs = kv_ptr + at[:, None] * HEAD_DIM + column[None, :]
    if QUANTIZED:
        largest = tl.max(tl.abs(x), 1)
        inverse = tl.div_rn(127.0, tl.maximum(largest, SMALLEST))
        # 1.5 * 2^23 leaves no bits for a fraction: rounds to the nearest integer, ties to even.
        codes = (x * inverse[:, None] + 12582912.0) - 12582912.0
        # The sum is 0, or NaN where a value is not finite: then the scale is, and all it scales.
        scale = largest * (1.0 / 127.0) + tl.sum(x * 0.0, 1)
        tl.store(scales_ptr + at, scale, mask=head < KV_HEADS)
        codes = tl.where(codes == codes, codes, 0.0)
        tl.store(kv_ptrs, codes.to(tl.int8), mask=cell)
    else:
        tl.store(kv_ptrs, x.to(kv_ptr.dtype.element_ty), mask=cell)
