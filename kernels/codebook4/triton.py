"""Triton kernels of the `codebook4` layout: activations in bf16, codes of four bits (w4a16).

Codes lie in words as those of `int4` (kernels/int4/packing.py): nibble j of BW neighbouring words
is a contiguous slice of K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.codebook4.decode.triton import (
    decode_pairs,
    decode_words,
    load_scale_word,
    load_table,
    scale_in_word,
)
from tersor.kernels.codebook4.lookup import LOOKUP_SIZE
from tersor.kernels.codebook4.scales import ScaleGrid
from tersor.kernels.cpu import padded_columns
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finished_like
from tersor.kernels.gemv.launch import Product, decoded_product
from tersor.kernels.gemv.triton import compute_dtype, has_inline_asm, store_tile, tile_rows


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight [N, K] as the kernels take it; all contiguous, on one device."""

    words: Tensor  # int32 [N, W], as `pack_words` makes them
    scales: Tensor  # int32 [blocks, words, N], as `ScaleGrid.pack` makes them
    lookup: Tensor  # int32 [264], as `gpu_lookup` makes it
    tensor_scale: Tensor | None  # float32 [1]
    grid: ScaleGrid
    mirrored: bool  # what `is_mirrored` says of the table


@triton.jit
def codebook4_matmul_kernel(
    x_ptr,  # bf16 [m, k], k a multiple of 8 * BW
    words_ptr,  # int32 [n, words]
    scales_ptr,  # int32 [words / BW, SCALE_WORDS, n]
    lookup_ptr,  # int32 [264]
    tensor_scale_ptr,  # float32 [1], read if HAS_TENSOR_SCALE
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # see `store_tile`
    m,
    n,
    k,
    words,  # a multiple of BW
    blocks_per_split,  # blocks of BW words
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16; fp32 in the interpreter, which lacks bf16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    USE_ASM: tl.constexpr,  # NVIDIA; its portable twin makes the same bits
    SLICES: tl.constexpr,  # nibble slices of a part, which share a scale: 1, 2, 4 or 8
    SCALE: tl.constexpr,  # form of the scales: "bf16", "f32", "e8m0" or "e4m3"
    SCALE_WORDS: tl.constexpr,  # of a block
    IN_WORD: tl.constexpr,  # scales in a word: 1, 2 or 4
    HAS_TENSOR_SCALE: tl.constexpr,
    MIRRORED: tl.constexpr,  # low bytes of values c and c + 8 are equal
):
    """out[s, i, r] = sum over c in split s of w[r, c] * x[i, c] (+ bias[r]).

    w[r, c] = table[code[r, c]] * scale[r, part of c]

    Transposed, as int4's kernels: the weights are the M side of the dot. Values of the table
    are rounded to bf16, products and sums are float32; the scale is applied to the sum of its part.
    Grid: (m / BM, n / BN, splits): programs that read the same weights run together.
    """
    tokens = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    row = tile_rows(tile, n, GATE, BN)
    token = tl.minimum(tokens, m - 1)  # as for rows: the last is computed again, not stored
    lanes = tl.arange(0, BW)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, words // BW)
    words_ptrs = words_ptr + row[:, None] * words + lanes[None, :]
    scales_ptrs = scales_ptr + first.to(tl.int64) * SCALE_WORDS * n + row
    x_ptrs = x_ptr + token[None, :] * k + lanes[:, None]
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    if USE_ASM:
        table = load_table(lookup_ptr)
    # Tables of the portable path and many scales are loads that would take too many registers.
    for block in tl.range(first, last, num_stages=None if USE_ASM and SCALE_WORDS <= 4 else 2):
        packed = tl.load(words_ptrs + block * BW, eviction_policy="evict_first")
        if USE_ASM:
            slices = decode_words(packed, table, MIRRORED)
        else:
            slices = decode_pairs(packed, lookup_ptr, COMPUTE)
        for part in tl.static_range(8 // SLICES):
            if part % IN_WORD == 0:
                scale_word = load_scale_word(scales_ptrs + part // IN_WORD * n, BM)
            start = (block * 8 + part * SLICES) * BW
            total = tl.zeros((BN, BM), dtype=tl.float32)
            for i in tl.static_range(SLICES):
                column = start + i * BW
                x = tl.load(x_ptrs + column, eviction_policy="evict_last").to(COMPUTE)
                total = tl.dot(slices[part * SLICES + i], x, total)
            acc += total * scale_in_word(scale_word, part % IN_WORD, SCALE)
        scales_ptrs += SCALE_WORDS * n
    if HAS_TENSOR_SCALE:
        acc *= tl.load(tensor_scale_ptr)
    store_tile(acc, row, tokens, bias_ptr, out_ptr, tile, split, m, n, HAS_BIAS, GATE, BN, BM)


@triton.jit
def codebook4_decode_kernel(
    words_ptr,  # int32 [n, words]
    scales_ptr,  # int32 [words / BW, SCALE_WORDS, all_n]
    lookup_ptr,  # int32 [264]
    tensor_scale_ptr,  # float32 [1], read if HAS_TENSOR_SCALE
    out_ptr,  # [n, k]
    n,
    k,
    words,
    all_n,  # rows of the whole weight, of which this launch decodes n
    SLICES: tl.constexpr,
    SCALE: tl.constexpr,
    SCALE_WORDS: tl.constexpr,  # of a block
    IN_WORD: tl.constexpr,  # scales in a word: 1, 2 or 4
    HAS_TENSOR_SCALE: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
):
    """out[r, c] = table[code[r, c]] * scale[r, part of c], the table rounded to bf16.

    Grid: (n / BN, words / BW).
    """
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    block = tl.program_id(1)
    row_inside = rows < n
    row = tl.minimum(rows, n - 1)
    lanes = tl.arange(0, BW)
    packed = tl.load(words_ptr + row[:, None] * words + (block * BW + lanes)[None, :])
    slices = decode_pairs(packed, lookup_ptr, tl.float32)
    scale_ptrs = scales_ptr + (block * SCALE_WORDS).to(tl.int64) * all_n + row
    for j in tl.static_range(8):
        scale_word = load_scale_word(scale_ptrs + j // SLICES // IN_WORD * all_n, BW)
        column = (block * 8 + j) * BW + lanes
        weight = slices[j] * scale_in_word(scale_word, j // SLICES % IN_WORD, SCALE)
        if HAS_TENSOR_SCALE:
            weight *= tl.load(tensor_scale_ptr)
        inside = row_inside[:, None] & (column < k)[None, :]
        out_ptrs = out_ptr + rows[:, None] * k + column[None, :]
        tl.store(out_ptrs, weight.to(out_ptr.dtype.element_ty), mask=inside)


def matmul(x: Tensor, weight: Weight, bias: Tensor | None, finish: Finish = Finish.SUM) -> Tensor:
    """Computes x @ weight.T + bias on a GPU (or in Triton's interpreter).

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16.
        weight: see `Weight`.
        bias: [N] or None.
        finish: what is returned.

    Returns:
        [M, N] in x.dtype, or what `finish` says. From GEMM_MIN_ROWS rows on the weight is decoded
        once, for cuBLAS.

    Raises:
        LayoutError: an argument has another shape, dtype or device, or is not contiguous.
    """
    check_tensor("x", x, shape=(None, weight.grid.k), dtypes=ACTIVATION_DTYPES)
    _check_weight(weight, x.device)
    m, n = x.shape[0], weight.words.shape[0]
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=x.device)
    if m == 0:
        return finished_like(x, finish, n, splits=1)
    if m < GEMM_MIN_ROWS:
        # Without masks for a ragged K in the loop, which would cost registers there: spills.
        return _product(weight).launch(padded_columns(x, weight.grid.padded_k), bias, finish)
    return decoded_product(
        x, n, bias, finish, lambda start, stop: decode(weight, torch.bfloat16, start, stop)
    )


def decode(weight: Weight, dtype: torch.dtype, start: int, stop: int) -> Tensor:
    """Rows start..stop (or the end) of the weight: [rows, k] in `dtype`, fp32 or bf16.

    Raises LayoutError as `matmul` does.
    """
    words, grid = weight.words, weight.grid
    _check_weight(weight, words.device)
    compute_dtype(words.device)
    part = words[start:stop]
    n = part.shape[0]
    out = torch.empty(n, grid.k, dtype=dtype, device=words.device)
    codebook4_decode_kernel[(triton.cdiv(n, 16), grid.blocks)](
        part,
        weight.scales[:, :, start:],
        weight.lookup,
        weight.lookup if weight.tensor_scale is None else weight.tensor_scale,
        out,
        n,
        grid.k,
        words.shape[1],
        words.shape[0],
        **_scale_constants(weight),
        BN=16,
        BW=grid.bw,
        num_warps=4,
    )
    return out


def tile_heights(slices: int) -> tuple[int, ...]:
    """BM by `ScaleGrid.slices`: with a scale per slice, 16 rows of x take too many registers."""
    return (8,) if slices == 1 else (8, 16)


def _product(weight: Weight) -> Product:
    """The kernel bound to a weight."""
    grid = weight.grid
    return Product(
        kernel=codebook4_matmul_kernel,
        name=grid.kernel_name,
        n=weight.words.shape[0],
        k=grid.padded_k,
        steps=grid.blocks,
        bms=tile_heights(grid.slices),
        weights=(
            weight.words,
            weight.scales,
            weight.lookup,
            weight.lookup if weight.tensor_scale is None else weight.tensor_scale,
        ),
        sizes=(weight.words.shape[1],),
        constants={
            "BW": grid.bw,
            "USE_ASM": has_inline_asm(weight.words.device),
            "MIRRORED": weight.mirrored,
            **_scale_constants(weight),
        },
    )


def _scale_constants(weight: Weight) -> dict[str, int | str | bool]:
    return {
        "SLICES": weight.grid.slices,
        "SCALE": weight.grid.scale,
        "SCALE_WORDS": weight.grid.words,
        "IN_WORD": weight.grid.in_word,
        "HAS_TENSOR_SCALE": weight.tensor_scale is not None,
    }


def _check_weight(weight: Weight, device: torch.device) -> None:
    """Raises LayoutError unless `weight` is what its grid says, on `device`."""
    words, grid = weight.words, weight.grid
    width = grid.padded_k // 8
    check_tensor("words", words, shape=(None, width), dtypes=(torch.int32,), device=device)
    shape = (grid.blocks, grid.words, words.shape[0])
    check_tensor("scales", weight.scales, shape=shape, dtypes=(torch.int32,), device=device)
    check_tensor(
        "lookup", weight.lookup, shape=(LOOKUP_SIZE,), dtypes=(torch.int32,), device=device
    )
    if weight.tensor_scale is not None:
        check_tensor(
            "tensor_scale", weight.tensor_scale, shape=(1,), dtypes=(torch.float32,), device=device
        )
