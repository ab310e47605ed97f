"""Triton kernels of the `bitmap` layout: activations in bf16, non-zero weights gathered by rank.

Bits and values lie as drawn in packing.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.bitmap.packing import BLOCK, WORDS, blocks_of, kernel_name, offset_dtype
from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.cpu import padded_columns
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finished_like
from tersor.kernels.gemv.launch import Product, decoded_product
from tersor.kernels.gemv.triton import compute_dtype, has_inline_asm, store_tile, tile_rows

BMS = (8, 16)  # 32 rows of x spill
_VALUE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int8)


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight [N, K] as the kernels take it; all contiguous, on one device."""

    words: Tensor  # int32 [N, 4 * blocks], as `pack_mask` makes them
    offsets: Tensor  # int16 or int32, as `words`: values of the row before each word
    starts: Tensor  # int32 [N]: values before each row
    values: Tensor  # [2 + nonzeros], 0 at both ends
    scales: Tensor | None  # bf16 [N]


@triton.jit
def _popcount(bits, USE_ASM: tl.constexpr):
    """Ones of each int32 that is not negative."""
    if USE_ASM:
        ones = tl.inline_asm_elementwise(
            "popc.b32 $0, $1;", "=r,r", [bits], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        ones = bits - ((bits >> 1) & 0x55555555)
        ones = (ones & 0x33333333) + ((ones >> 2) & 0x33333333)
        ones = (ones + (ones >> 4)) & 0x0F0F0F0F
        ones = (ones + (ones >> 8)) & 0x00FF00FF
        ones = (ones + (ones >> 16)) & 0xFF
    return ones


@triton.jit
def bitmap_matmul_kernel(
    x_ptr,  # bf16 [m, k], k a multiple of 128
    words_ptr,  # int32 [n, k / 32]
    offsets_ptr,  # int16 or int32 [n, k / 32]
    starts_ptr,  # int32 [n]
    values_ptr,  # [2 + nonzeros], 0 first and last
    scales_ptr,  # bf16 [n], read if HAS_SCALES
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # see `store_tile`
    m,
    n,
    k,
    blocks_per_split,  # blocks of 128 columns
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16; fp32 in the interpreter, which lacks bf16
    BM: tl.constexpr,
    BN: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    USE_ASM: tl.constexpr,  # NVIDIA; its portable twin makes the same bits
):
    """out[s, i, r] = sum over c in split s of w[r, c] * x[i, c] (+ bias[r]).

    A nibble is four weights: one popcount of the bits below it gives the rank of its first value,
    and the bits themselves those of the others. Every weight loads a value, and drops it if its
    bit is not set: loads under a mask took more registers, and spilled.

    Transposed, as `int8_matmul_kernel`: the weights are the M side of the dot.
    Grid: (m / BM, n / BN, splits): programs that read the same weights run together.
    """
    tokens = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    row = tile_rows(tile, n, GATE, BN)
    token = tl.minimum(tokens, m - 1)  # as for rows: the last is computed again, not stored
    lanes = tl.arange(0, 32)  # nibbles of a block
    shift = lanes % 8 * 4
    below = (1 << shift) - 1
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, k // 128)
    # 32 bits: 64-bit addresses of a thread's 32 rows would take all registers.
    at = row.to(tl.int32)[:, None] * (k // 32) + (lanes // 8)[None, :]
    start = tl.load(starts_ptr + row)[:, None] + 1
    x_ptrs = x_ptr + token[None, :] * k + lanes[:, None]
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    # With more stages the gathered values would wait in registers, too.
    for block in tl.range(first, last, num_stages=2):
        word = tl.load(words_ptr + (at + block * 4))
        rank = start + tl.load(offsets_ptr + (at + block * 4)).to(tl.int32)
        rank += _popcount(word & below[None, :], USE_ASM)
        for j in tl.static_range(4):
            bit = (word >> (shift + j)[None, :]) & 1
            value = tl.load(values_ptr + rank)
            value = tl.where(bit != 0, value, 0.0)
            x = tl.load(x_ptrs + block * 128 + j * 32, eviction_policy="evict_last")
            acc = tl.dot(value.to(COMPUTE), x.to(COMPUTE), acc)
            rank += bit
    if HAS_SCALES:
        acc *= tl.load(scales_ptr + row).to(tl.float32)[:, None]
    store_tile(acc, row, tokens, bias_ptr, out_ptr, tile, split, m, n, HAS_BIAS, GATE, BN, BM)


@triton.jit
def bitmap_decode_kernel(
    words_ptr,  # int32 [n, words]
    offsets_ptr,  # int16 or int32 [n, words]
    starts_ptr,  # int32 [n]
    values_ptr,  # [2 + nonzeros], 0 first and last
    out_ptr,  # [n, k]
    n,
    k,
    words,
    USE_ASM: tl.constexpr,
    BN: tl.constexpr,
):
    """out[r, c] = the value of the bit of (r, c), 0 if it is not set; not scaled.

    Grid: (n / BN, words / 4).
    """
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    block = tl.program_id(1)
    row = tl.minimum(rows, n - 1)
    lanes = tl.arange(0, 32)
    lowest = 1 << lanes % 8 * 4
    at = row[:, None] * words + (block * 4 + lanes // 8)[None, :]
    word = tl.load(words_ptr + at)
    rank = tl.load(starts_ptr + row)[:, None] + tl.load(offsets_ptr + at).to(tl.int32)
    rank += _popcount(word & (lowest - 1)[None, :], USE_ASM)
    for j in tl.static_range(4):
        there = (word & (lowest << j)[None, :]) != 0
        rank += there.to(tl.int32)
        value = tl.load(values_ptr + rank, mask=there, other=0.0)
        column = block * 128 + j * 32 + lanes
        inside = (rows < n)[:, None] & (column < k)[None, :]
        out_ptrs = out_ptr + rows[:, None] * k + column[None, :]
        tl.store(out_ptrs, value.to(tl.float32).to(out_ptr.dtype.element_ty), mask=inside)


def matmul(x: Tensor, weight: Weight, bias: Tensor | None, finish: Finish = Finish.SUM) -> Tensor:
    """Computes x @ weight.T + bias on a GPU (or in Triton's interpreter).

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16.
        weight: see `Weight`; f16 and f32 values are rounded to bf16.
        bias: [N] or None.
        finish: what is returned.

    Returns:
        [M, N] in x.dtype, or what `finish` says. From GEMM_MIN_ROWS rows on the weight is decoded
        once, for cuBLAS.

    Raises:
        LayoutError: an argument has another shape, dtype or device, or is not contiguous.
    """
    check_tensor("x", x, shape=(None, None), dtypes=ACTIVATION_DTYPES)
    m, k = x.shape
    _check_weight(weight, k, x.device)
    n = weight.words.shape[0]
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=x.device)
    if m == 0:
        return finished_like(x, finish, n, splits=1)
    if m < GEMM_MIN_ROWS:
        # Columns beyond K have no bits, but are multiplied: padded, the loop needs no masks.
        padded = padded_columns(x, blocks_of(k) * BLOCK)
        return _product(weight).launch(padded, bias, finish)
    return decoded_product(
        x,
        n,
        bias,
        finish,
        lambda start, stop: decode(weight, k, torch.bfloat16, start, stop),
        weight.scales,
    )


def decode(weight: Weight, k: int, dtype: torch.dtype, start: int, stop: int) -> Tensor:
    """Rows start..stop (or the end) of the weight without scales: [rows, k] in `dtype`.

    `dtype` is fp32 or bf16; raises LayoutError as `matmul` does.
    """
    device = weight.words.device
    _check_weight(weight, k, device)
    compute_dtype(device)
    words = weight.words[start:stop]
    n = words.shape[0]
    out = torch.empty(n, k, dtype=dtype, device=device)
    bitmap_decode_kernel[(triton.cdiv(n, 16), blocks_of(k))](
        words,
        weight.offsets[start:],
        weight.starts[start:],
        weight.values,
        out,
        n,
        k,
        words.shape[1],
        USE_ASM=has_inline_asm(device),
        BN=16,
        num_warps=4,
    )
    return out


def _product(weight: Weight) -> Product:
    """The kernel bound to a weight, padded to whole blocks."""
    n, width = weight.words.shape
    scales = weight.scales
    return Product(
        kernel=bitmap_matmul_kernel,
        name=kernel_name(scales=scales is not None),
        n=n,
        k=width * 32,
        steps=width // WORDS,
        bms=BMS,
        weights=(
            weight.words,
            weight.offsets,
            weight.starts,
            weight.values,
            weight.starts if scales is None else scales,
        ),
        constants={
            "HAS_SCALES": scales is not None,
            "USE_ASM": has_inline_asm(weight.words.device),
        },
    )


def _check_weight(weight: Weight, k: int, device: torch.device) -> None:
    """Raises LayoutError unless `weight` is one of k columns on `device`."""
    width = blocks_of(k) * WORDS
    check_tensor("words", weight.words, shape=(None, width), dtypes=(torch.int32,), device=device)
    n = weight.words.shape[0]
    check_tensor(
        "offsets", weight.offsets, shape=(n, width), dtypes=(offset_dtype(k),), device=device
    )
    check_tensor("starts", weight.starts, shape=(n,), dtypes=(torch.int32,), device=device)
    check_tensor("values", weight.values, shape=(None,), dtypes=_VALUE_DTYPES, device=device)
    if weight.scales is not None:
        check_tensor("scales", weight.scales, shape=(n,), dtypes=(torch.bfloat16,), device=device)
