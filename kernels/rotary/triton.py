"""Triton kernel between the qkv product and attention: one program a token and head.

A head is held as its two halves, because a rotation turns the pairs (i, i + head_dim / 2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.attention import quantize
from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.errors import LayoutError
from tersor.kernels.gemv.triton import check_device, load_partials

SMALLEST = tl.constexpr(quantize.SMALLEST)


@triton.jit
def load_halves(pointer, HEAD_DIM: tl.constexpr, HALF: tl.constexpr):
    """Both halves, float32 [HALF], of the vector [HEAD_DIM] at `pointer`, zero beyond its end."""
    lane = tl.arange(0, HALF)
    inside = lane < HEAD_DIM // 2
    first = tl.load(pointer + lane, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(pointer + HEAD_DIM // 2 + lane, mask=inside, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def store_halves(pointer, first, second, HEAD_DIM: tl.constexpr, HALF: tl.constexpr):
    """Writes both halves of a vector [HEAD_DIM] to `pointer`, in its dtype."""
    lane = tl.arange(0, HALF)
    inside = lane < HEAD_DIM // 2
    dtype = pointer.dtype.element_ty
    tl.store(pointer + lane, first.to(dtype), mask=inside)
    tl.store(pointer + HEAD_DIM // 2 + lane, second.to(dtype), mask=inside)


@triton.jit
def load_head(
    qkv_ptr,  # [SPLITS, tokens, (heads + 2 * kv_heads) * HEAD_DIM]
    cos_ptr,  # [tokens, table_stride], its first HEAD_DIM columns; both halves the same
    sin_ptr,  # as cos_ptr; the first half negated
    q_gain_ptr,  # [HEAD_DIM], read if NORM
    k_gain_ptr,
    token,  # int64
    head,  # of queries, then keys, then values
    tokens,
    heads,
    kv_heads,
    table_stride,
    eps,
    SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
):
    """Both halves, float32 [HALF], of one head: added up, normalized and rotated if it is to be."""
    width = (heads + 2 * kv_heads) * HEAD_DIM
    stride = tokens.to(tl.int64) * width
    lane = tl.arange(0, HALF)
    inside = lane < HEAD_DIM // 2
    pointers = qkv_ptr + token * width + head * HEAD_DIM + lane
    first = load_partials(pointers, stride, inside, SPLITS)
    second = load_partials(pointers + HEAD_DIM // 2, stride, inside, SPLITS)
    if head < heads + kv_heads:  # values stay as they are
        if NORM:
            if head < heads:
                gain, other_gain = load_halves(q_gain_ptr, HEAD_DIM, HALF)
            else:
                gain, other_gain = load_halves(k_gain_ptr, HEAD_DIM, HALF)
            mean = tl.sum(first * first + second * second, axis=0) / HEAD_DIM
            scale = tl.rsqrt(mean + eps)
            first = first * scale * gain
            second = second * scale * other_gain
        cos = tl.load(cos_ptr + token * table_stride + lane, mask=inside, other=0.0)
        sin_ptrs = sin_ptr + token * table_stride + HEAD_DIM // 2 + lane
        sin = tl.load(sin_ptrs, mask=inside, other=0.0).to(tl.float32)
        cos = cos.to(tl.float32)
        turned = first * cos - second * sin
        second = second * cos + first * sin
        first = turned
    return first, second


@triton.jit
def store_kv(
    cache_ptr,  # [slots, 2, kv_heads, HEAD_DIM]
    slot,  # int64
    kv_head,  # of keys, then values: 0 … 2 * kv_heads - 1
    kv_heads,
    first,
    second,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
):
    """Writes a key or value head to its place in the cache."""
    pointer = cache_ptr + (slot * 2 * kv_heads + kv_head) * HEAD_DIM
    store_halves(pointer, first, second, HEAD_DIM, HALF)


@triton.jit
def rounded_codes(x, inverse):
    """The nearest integers to x * inverse, ties to even, and 0 for NaN."""
    # 1.5 * 2^23 leaves no bits for a fraction.
    codes = (x * inverse + 12582912.0) - 12582912.0
    return tl.where(codes == codes, codes, 0.0)


@triton.jit
def store_kv_codes(
    cache_ptr,  # int8 [slots, 2, kv_heads, HEAD_DIM]
    scales_ptr,  # float32 [slots, 2, kv_heads]
    slot,  # this and what follows: as in `store_kv`
    kv_head,
    kv_heads,
    first,
    second,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
):
    """Writes a key or value head and its scale, as `attention.quantize.quantize_kv` makes them."""
    at = slot * 2 * kv_heads + kv_head
    largest = tl.maximum(tl.max(tl.abs(first), axis=0), tl.max(tl.abs(second), axis=0))
    inverse = tl.div_rn(127.0, tl.maximum(largest, SMALLEST))
    # The sum is 0, or NaN where a number is not finite: then the scale is, and all it scales.
    scale = largest * (1.0 / 127.0) + tl.sum(first * 0.0 + second * 0.0, axis=0)
    tl.store(scales_ptr + at, scale)
    first, second = rounded_codes(first, inverse), rounded_codes(second, inverse)
    store_halves(cache_ptr + at * HEAD_DIM, first, second, HEAD_DIM, HALF)


@triton.jit(do_not_specialize=["tokens"])
def rotate_store_kernel(
    qkv_ptr,  # this and what follows to k_gain_ptr: as in `load_head`
    cos_ptr,
    sin_ptr,
    q_gain_ptr,
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
    HALF: tl.constexpr,  # power of two >= HEAD_DIM / 2
):
    """Queries to q, keys and values to their slots. Grid: (tokens, heads + 2 * kv_heads)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first, second = load_head(
        qkv_ptr, cos_ptr, sin_ptr, q_gain_ptr, k_gain_ptr, token, head, tokens, heads, kv_heads,
        table_stride, eps, SPLITS, NORM, HEAD_DIM, HALF,
    )  # fmt: skip
    if head < heads:
        store_halves(q_ptr + (token * heads + head) * HEAD_DIM, first, second, HEAD_DIM, HALF)
    else:
        slot = tl.load(slots_ptr + token)
        kv_head = head - heads
        if QUANTIZED:
            store_kv_codes(
                cache_ptr, scales_ptr, slot, kv_head, kv_heads, first, second, HEAD_DIM, HALF
            )
        else:
            store_kv(cache_ptr, slot, kv_head, kv_heads, first, second, HEAD_DIM, HALF)


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
    check_heads(qkv, cos, sin, q_gain, k_gain, slots, num_heads, kv_heads, head_dim)
    tokens = qkv.shape[1]
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
            HALF=triton.next_power_of_2(head_dim // 2),
            num_warps=1,
        )
    return q


def check_heads(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    slots: Tensor,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
) -> None:
    """Raises LayoutError unless these are what `load_head` and a store by slot rely on."""
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
    check_tensor("slots", slots, shape=(tokens,), dtypes=(torch.int64,), device=device)
