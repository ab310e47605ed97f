"""The kernel of words with a scale per group of columns: codes of four bits, w4a16."""

import triton
import triton.language as tl

from tersor.kernels.gemv.triton import store_tile, tile_rows
from tersor.kernels.int4.triton_unpack import raised_code, unpack_nibbles
from tersor.kernels.outliers.triton import add_outliers


@triton.jit
def columns_of(values, BN: tl.constexpr, PARTS: tl.constexpr):
    """The columns [BN] of values [BN, PARTS], PARTS = 1, 2, 4 or 8, as a tuple."""
    if PARTS == 1:
        columns = (values.reshape(BN),)
    elif PARTS == 2:
        c0, c1 = tl.split(values)
        columns = (c0, c1)
    elif PARTS == 4:
        even, odd = tl.split(values.reshape(BN, 2, 2))
        c0, c2 = tl.split(even)
        c1, c3 = tl.split(odd)
        columns = (c0, c1, c2, c3)
    else:
        even, odd = tl.split(values.reshape(BN, 2, 2, 2))
        c04, c26 = tl.split(even)
        c15, c37 = tl.split(odd)
        c0, c4 = tl.split(c04)
        c2, c6 = tl.split(c26)
        c1, c5 = tl.split(c15)
        c3, c7 = tl.split(c37)
        columns = (c0, c1, c2, c3, c4, c5, c6, c7)
    return columns


@triton.jit
def group_matmul_kernel(
    x_ptr,  # bf16 [m, k]
    words_ptr,  # int32 [n, words]
    scales_ptr,  # bf16 [ceil(blocks / SCALE_BLOCKS), n, PARTS]
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
    columns_width,
    blocks_per_split,  # blocks of BW words
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16; fp32 in the interpreter, which lacks bf16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    OUTLIERS: tl.constexpr,
    EVEN_K: tl.constexpr,  # k is a multiple of 8 * BW: K needs no masks
    USE_ASM: tl.constexpr,  # NVIDIA; its portable twin makes the same bits
    PARTS: tl.constexpr,  # scales of a row in a block: 1, 2, 4 or 8
    SCALE_BLOCKS: tl.constexpr,  # blocks that share their scales
):
    """out[s, i, r] = sum over c in split s of w[r, c] * x[i, c] (+ bias[r]) (+ outliers).

    w[r, c] = (code[r, c] - zero[r, p]) * scale[r, p], p the part of a block that c is in

    Codes enter the dot as 128 + code and the weights are its M side, as in `row_matmul_kernel`.
    The offset leaves a part's sum before its scale is applied. Without zeros it is the same for
    all rows, so the sum starts from a dot of x with -136 instead of from 0; ptxas makes that once
    for all the 16-row tiles of a warp. With zeros it is (128 + zero) times the dot of x with ones.

    Scales and zeros are loaded a block ahead: nothing else in the loop would hide their latency,
    as they enter no dot and so are not part of the pipeline that Triton makes.
    Grid: (m / BM, n / BN, splits): programs that read the same weights run together.
    """
    SLICES: tl.constexpr = 8 // PARTS
    tokens = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    row = tile_rows(tile, n, GATE, BN)
    token = tl.minimum(tokens, m - 1)  # as for rows: the last is computed again, not stored
    lanes = tl.arange(0, BW)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, words // BW)
    words_ptrs = words_ptr + row[:, None] * words + lanes[None, :]
    x_ptrs = x_ptr + token[None, :] * k + lanes[:, None]
    row_parts = (row * PARTS)[:, None] + tl.arange(0, PARTS)[None, :]
    at = row_parts + (first // SCALE_BLOCKS).to(tl.int64) * n * PARTS
    next_scales = tl.load(scales_ptr + at)
    if HAS_ZEROS:
        next_zeros = tl.load(zeros_ptr + at)
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    constant = tl.full((BN, BW), 1.0 if HAS_ZEROS else -136.0, dtype=COMPUTE)
    for block in range(first, last):
        packed = tl.load(words_ptrs + block * BW, eviction_policy="evict_first")
        at = row_parts + (tl.minimum(block + 1, last - 1) // SCALE_BLOCKS).to(tl.int64) * n * PARTS
        scales = columns_of(next_scales.to(tl.float32), BN, PARTS)
        next_scales = tl.load(scales_ptr + at)
        if HAS_ZEROS:
            # float32 128 + zero by its bits, two operations fewer than a conversion
            offset = ((next_zeros.to(tl.int32) | 0x4300) << 16).to(tl.float32, bitcast=True)
            offsets = columns_of(offset, BN, PARTS)
            next_zeros = tl.load(zeros_ptr + at)
        if USE_ASM:
            numbers = unpack_nibbles(packed)
        for part in tl.static_range(PARTS):
            offset_sum = tl.zeros((BN, BM), dtype=tl.float32)
            for i in tl.static_range(SLICES):
                x = _load_x(x_ptrs, lanes, (block * 8 + part * SLICES + i) * BW, k, EVEN_K)
                offset_sum = tl.dot(constant, x.to(COMPUTE), offset_sum)
            total = tl.zeros((BN, BM), dtype=tl.float32) if HAS_ZEROS else offset_sum
            for i in tl.static_range(SLICES):
                x = _load_x(x_ptrs, lanes, (block * 8 + part * SLICES + i) * BW, k, EVEN_K)
                if USE_ASM:
                    raised = numbers[part * SLICES + i]  # a named index would be no constant
                else:
                    raised = raised_code(packed, packed, part * SLICES + i, 4, COMPUTE)
                total = tl.dot(raised, x.to(COMPUTE), total)
            if HAS_ZEROS:
                total -= offsets[part][:, None] * offset_sum
            acc += total * scales[part][:, None]
    if OUTLIERS:
        acc = add_outliers(
            acc, row, tokens, split, entries_ptr, starts_ptr, columns_ptr, columns_width, m, BN, BM
        )
    store_tile(acc, row, tokens, bias_ptr, out_ptr, tile, split, m, n, HAS_BIAS, GATE, BN, BM)


@triton.jit
def _load_x(x_ptrs, lanes, column, k, EVEN_K: tl.constexpr):
    """X [BW, BM] from `column` on; zero from column k on."""
    if EVEN_K:
        x = tl.load(x_ptrs + column, eviction_policy="evict_last")
    else:
        x = tl.load(x_ptrs + column, mask=(column + lanes < k)[:, None], other=0.0)
    return x
