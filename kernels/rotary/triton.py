"""Triton kernel between the qkv product and attention, and what it shares with decoding.

The kernel has a program for each token and head. Where every sequence has one token, attention
makes the same heads itself, from the same functions and to the same bits (`attention.decode`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.errors import LayoutError
from tersor.kernels.gemv.triton import check_device, load_partials
from tersor.kernels.rotary import quantize

SMALLEST = tl.constexpr(quantize.SMALLEST)


@triton.jit
def row_sums(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums [ROWS, 1] over the columns of x, with the same bits in every kernel.

    Halves are added up, then their halves: the order in which `tl.sum` adds more than two numbers
    depends on how a tile lies over threads.
    """
    for step in tl.static_range(31):
        if COLUMNS >> step > 1:
            x = tl.sum(x.reshape(ROWS, 2, COLUMNS >> (step + 1)), 1)
    return x


@triton.jit
def load_heads(
    qkv_ptr,  # [SPLITS, tokens, width]
    cos_ptr,  # [tokens, table_stride], its first HEAD_DIM columns; both halves the same
    sin_ptr,  # as cos_ptr; the first half negated
    gain_ptr,  # [HEAD_DIM], read if NORM
    token,  # int64
    head,  # int32 [ROWS], of queries, then keys, then values
    tokens,
    width,  # of a row of qkv: all heads
    rotated,  # heads from here on are values, which stay as they are
    table_stride,
    eps,
    SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Heads of one token, float32 [ROWS, COLUMNS]: added up, normalized and rotated.

    A rotation turns the pairs (i, i + HEAD_DIM / 2), so a column's partner is loaded beside it;
    by then its line is in the L1.
    """
    column = tl.arange(0, COLUMNS)[None, :]
    partner = (column + HEAD_DIM // 2) % HEAD_DIM
    inside = column < HEAD_DIM
    turns = (head < rotated)[:, None]
    heads_ptr = qkv_ptr + token * width + head[:, None] * HEAD_DIM
    stride = tokens.to(tl.int64) * width
    whole = load_partials(heads_ptr + column, stride, inside, SPLITS)
    other = load_partials(heads_ptr + partner, stride, inside & turns, SPLITS)
    x = whole
    if NORM:
        # A product of its own, which no compiler makes one operation of with the first addition.
        squares = tl.fma(x, x, tl.zeros_like(x))
        scale = tl.rsqrt(row_sums(squares, ROWS, COLUMNS) / HEAD_DIM + eps)
        gain = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
        x = x * scale * gain
        gain = tl.load(gain_ptr + partner, mask=inside, other=0.0).to(tl.float32)
        other = other * scale * gain
    table = token * table_stride + column
    cos = tl.load(cos_ptr + table, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + table, mask=inside, other=0.0).to(tl.float32)
    return tl.where(turns, x * cos + other * sin, whole)


@triton.jit
def store_rows(pointers, x, HEAD_DIM: tl.constexpr, COLUMNS: tl.constexpr):
    """Writes x [ROWS, COLUMNS] to vectors [HEAD_DIM] at `pointers` [ROWS], in their dtype."""
    column = tl.arange(0, COLUMNS)[None, :]
    inside = column < HEAD_DIM
    tl.store(pointers[:, None] + column, x.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def store_kv(
    cache_ptr,  # [slots, 2, kv_heads, HEAD_DIM]
    scales_ptr,  # float32 [slots, 2, kv_heads], written if QUANTIZED
    at,  # int64 [ROWS], places in the first three dimensions, counted
    x,  # float32 [ROWS, COLUMNS]
    QUANTIZED: tl.constexpr,  # the cache holds int8 codes
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes keys or values to their places, as codes and scales as `quantize_kv` makes them."""
    if QUANTIZED:
        largest = tl.max(tl.abs(x), 1)
        inverse = tl.div_rn(127.0, tl.maximum(largest, SMALLEST))
        # The sum is 0, or NaN where a number is not finite: then the scale is, and all it scales.
        tl.store(scales_ptr + at, largest * (1.0 / 127.0) + tl.sum(x * 0.0, 1))
        # 1.5 * 2^23 leaves no bits for a fraction: the nearest integer, ties to even.
        codes = (x * inverse[:, None] + 12582912.0) - 12582912.0
        x = tl.where(codes == codes, codes, 0.0)  # 0 for NaN
    store_rows(cache_ptr + at * HEAD_DIM, x, HEAD_DIM, COLUMNS)


@triton.jit(do_not_specialize=["tokens"])
def rotate_store_kernel(
    qkv_ptr,  # [SPLITS, tokens, (heads + 2 * kv_heads) * HEAD_DIM]
    cos_ptr,  # this and the next: as in `load_heads`
    sin_ptr,
    q_gain_ptr,  # [HEAD_DIM], read if NORM
    k_gain_ptr,
    slots_ptr,  # int64 [tokens]
    q_ptr,  # out: [tokens, heads, HEAD_DIM]
    cache_ptr,  # out: [slots, 2, kv_heads, HEAD_DIM]
    scales_ptr,  # out: float32 [slots, 2, kv_heads], written if QUANTIZED
    tokens,
    heads,
    kv_heads,
    table_stride,
    eps,
    SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    QUANTIZED: tl.constexpr,  # the cache holds int8 codes
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,  # power of two >= HEAD_DIM
):
    """Queries to q, keys and values to their slots. Grid: (tokens, heads + 2 * kv_heads)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) + tl.arange(0, 1)
    gain_ptr = q_gain_ptr
    if tl.program_id(1) >= heads:
        gain_ptr = k_gain_ptr
    x = load_heads(
        qkv_ptr, cos_ptr, sin_ptr, gain_ptr, token, head, tokens, (heads + 2 * kv_heads) * HEAD_DIM,
        heads + kv_heads, table_stride, eps, SPLITS, NORM, HEAD_DIM, 1, COLUMNS,
    )  # fmt: skip
    if tl.program_id(1) < heads:
        store_rows(q_ptr + (token * heads + head) * HEAD_DIM, x, HEAD_DIM, COLUMNS)
    else:
        at = tl.load(slots_ptr + token) * 2 * kv_heads + head - heads
        store_kv(cache_ptr, scales_ptr, at, x, QUANTIZED, HEAD_DIM, COLUMNS)


def rotate_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    num_heads: int,
    slots: Tensor,
    cache: Tensor,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """As `ops.rotate_store`, on a GPU (or in Triton's interpreter)."""
    dtypes = ACTIVATION_DTYPES if kv_scales is None else (torch.int8,)
    shape = (None, None, 2, None, None)
    check_tensor("cache", cache, shape=shape, dtypes=dtypes, device=qkv.device)
    kv_heads, head_dim = cache.shape[3:]
    if kv_scales is not None:
        check_tensor(
            "kv_scales", kv_scales, shape=tuple(cache.shape[:-1]), dtypes=(torch.float32,),
            device=qkv.device,
        )  # fmt: skip
    check_heads(qkv, cos, sin, q_gain, k_gain, num_heads, kv_heads, head_dim)
    tokens = qkv.shape[1]
    check_tensor("slots", slots, shape=(tokens,), dtypes=(torch.int64,), device=qkv.device)
    q = torch.empty(tokens, num_heads, head_dim, dtype=cos.dtype, device=qkv.device)
    if tokens:
        rotate_store_kernel[(tokens, num_heads + 2 * kv_heads)](
            qkv,
            cos,
            sin,
            qkv if q_gain is None else q_gain,
            qkv if k_gain is None else k_gain,
            slots,
            q,
            cache,
            cos if kv_scales is None else kv_scales,
            tokens,
            num_heads,
            kv_heads,
            cos.stride(0),
            eps,
            SPLITS=qkv.shape[0],
            NORM=q_gain is not None,
            QUANTIZED=kv_scales is not None,
            HEAD_DIM=head_dim,
            COLUMNS=triton.next_power_of_2(head_dim),
            num_warps=1,
        )
    return q


def check_heads(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
) -> None:
    """Raises LayoutError unless these are what `load_heads` relies on."""
    device = qkv.device
    check_device(device)
    if head_dim % 2:
        raise LayoutError(f"head_dim is {head_dim}, expected an even number to be rotated")
    width = (num_heads + 2 * kv_heads) * head_dim
    check_tensor("qkv", qkv, shape=(None, None, width), dtypes=ACTIVATION_DTYPES)
    tokens = qkv.shape[1]
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(
            name, table, shape=(tokens, 1, head_dim), dtypes=ACTIVATION_DTYPES, device=device,
            contiguous=False,
        )  # fmt: skip
        if table.stride(2) != 1 or table.stride(0) != cos.stride(0):
            raise LayoutError(
                f"`{name}` has strides {list(table.stride())}, expected 1 within a row, and cos "
                "and sin to be alike"
            )
    if (q_gain is None) != (k_gain is None):
        raise LayoutError("`q_gain` and `k_gain` are both given or neither is")
    if q_gain is not None and k_gain is not None:
        check_tensor("q_gain", q_gain, shape=(head_dim,), device=device)
        check_tensor("k_gain", k_gain, shape=(head_dim,), dtypes=(q_gain.dtype,), device=device)
