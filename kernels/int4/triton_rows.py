"""The kernel of words with one scale per row or per tensor: codes of four or six bits, w4a16."""

import triton
import triton.language as tl

from tersor.kernels.gemv.triton import store_tile, tile_rows
from tersor.kernels.int4.triton_unpack import raised_code, unpack_nibbles, unpack_six_bits
from tersor.kernels.outliers.triton import add_outliers


@triton.jit
def row_matmul_kernel(
    x_ptr,  # bf16 [m, k]
    words_ptr,  # int32 [n, words]
    high_ptr,  # int16 [n, words], read if BITS is 6
    scales_ptr,  # bf16 [n], or [1]
    zeros_ptr,  # uint8, as the scales, read if HAS_ZEROS
    entries_ptr,  # the outliers, see `add_outliers`, read if OUTLIERS
    starts_ptr,
    columns_ptr,
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # see `store_tile`
    m,
    n,
    k,
    words,  # a multiple of BW
    scale_stride,  # 1, or 0 where all rows share a scale
    columns_width,
    blocks_per_split,  # blocks of BW words
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16; fp32 in the interpreter, which lacks bf16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    BITS: tl.constexpr,  # 4 or 6
    HAS_ZEROS: tl.constexpr,
    OUTLIERS: tl.constexpr,
    EVEN_K: tl.constexpr,  # k is a multiple of 8 * BW: K needs no masks
    USE_ASM: tl.constexpr,  # NVIDIA; its portable twin makes the same bits
):
    """out[s, i, r] = sum over c in split s of w[r, c] * x[i, c] (+ bias[r]) (+ outliers).

    w[r, c] = (code[r, c] - zero[r]) * scale[r], zero = 2 ** (BITS - 1) unless HAS_ZEROS

    Transposed: the weights are the M side of the dot, so that a batch of 1 to 8 fills the tensor
    core's narrow side (8) instead of wasting 15/16 of the wide one.

    Codes enter the dot as 128 + code, exact in bf16. The offset leaves through the sum of the
    activations, once, behind the loop:
        sum of (code - zero) * x = sum of (128 + code) * x - (128 + zero) * sum of x
    A dot of 16 rows of 1/16 sums the activations: one tensor core instruction for all rows of the
    tile, where a dot as high as the tile would take one for every 16 of them.
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
    at = row[:, None] * words + lanes[None, :]
    x_ptrs = x_ptr + token[None, :] * k + lanes[:, None]
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    x_parts = tl.zeros((16, BM), dtype=tl.float32)
    sixteenth = tl.full((16, BW), 1 / 16, dtype=COMPUTE)
    for block in range(first, last):
        packed = tl.load(words_ptr + at + block * BW, eviction_policy="evict_first")
        high = packed
        if BITS == 6:
            high = tl.load(high_ptr + at + block * BW, eviction_policy="evict_first")
        if USE_ASM:
            numbers = unpack_six_bits(packed, high) if BITS == 6 else unpack_nibbles(packed)
        for j in tl.static_range(8):
            column = (block * 8 + j) * BW
            if EVEN_K:
                x = tl.load(x_ptrs + column, eviction_policy="evict_last").to(COMPUTE)
            else:
                inside = (column + lanes < k)[:, None]
                x = tl.load(x_ptrs + column, mask=inside, other=0.0).to(COMPUTE)
            raised = numbers[j] if USE_ASM else raised_code(packed, high, j, BITS, COMPUTE)
            acc = tl.dot(raised, x, acc)
            x_parts = tl.dot(sixteenth, x, x_parts)
    x_total = tl.sum(x_parts, axis=0)[None, :]
    if HAS_ZEROS:
        zero = tl.load(zeros_ptr + row * scale_stride).to(tl.float32)[:, None]
        acc -= (128.0 + zero) * x_total
    else:
        acc -= (128.0 + 2 ** (BITS - 1)) * x_total
    acc *= tl.load(scales_ptr + row * scale_stride).to(tl.float32)[:, None]
    if OUTLIERS:
        acc = add_outliers(
            acc, row, tokens, split, entries_ptr, starts_ptr, columns_ptr, columns_width, m, BN, BM
        )
    store_tile(acc, row, tokens, bias_ptr, out_ptr, tile, split, m, n, HAS_BIAS, GATE, BN, BM)
