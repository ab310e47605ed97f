"""Triton kernels of the `float12` layout: activations in bf16, bf16 weights in 12 bits.

Weights lie in words as drawn in packing.py: nibble or byte j of BW neighbouring words is a
contiguous slice of K, and every word is loaded exactly once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.float12.packing import BLOCK_COLUMNS, BLOCK_WORDS, BW, Packed, packed_width
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finished_like
from tersor.kernels.gemv.launch import Product, decoded_product
from tersor.kernels.gemv.triton import check_device, has_inline_asm, store_tile, tile_rows

BE = 16  # escapes multiplied at a time: the least that a dot takes
DECODED_ROWS = 16  # of a program that decodes


def _pairs_asm(codes: str) -> str:
    """Assembly: two words of codes ($4, $5) and of bytes ($6, $7) to four pairs of bf16 ($0-$3).

    PRMT doubles byte j of both words, so that sign and mantissa stand where bf16 has them in the
    high and in the low half of 16 bits. LOP3 takes them and puts the code between: as an exponent,
    with code and byte 0 making 0. A product with 2^112, exact, brings exponents 1..15 to 113..127,
    far from what underflows; adding -0 leaves it as it is (sm_80 can only multiply and add).
    """
    shifts = ("shl.b32 code, codes, 7", "shl.b32 code, codes, 3",
              "shr.u32 code, codes, 1", "shr.u32 code, codes, 5")  # fmt: skip
    lines = [
        ".reg .b32 codes, code, pair, scale, zero;",
        "mov.b32 scale, 0x77807780;",
        "mov.b32 zero, 0x80008000;",
        f"prmt.b32 codes, $4, $5, {codes};",
    ]
    for j, shift in enumerate(shifts):
        lines += [
            f"{shift};",
            "and.b32 code, code, 0x07800780;",
            f"prmt.b32 pair, $6, $7, 0x{4 + j}{4 + j}{j}{j};",
            "lop3.b32 pair, pair, 0x807F807F, code, 0xEA;",
            f"fma.rn.bf16x2 ${j}, pair, scale, zero;",
        ]
    return "\n".join(("{", *lines, "}"))


RESCALE = tl.constexpr(2.0**112)
# The low halves of two words of codes hold slices 0..3, the high ones 4..7.
LOW_PAIRS = tl.constexpr(_pairs_asm("0x5410"))
HIGH_PAIRS = tl.constexpr(_pairs_asm("0x7632"))


@triton.jit
def _pairs(codes, signs, ASM: tl.constexpr):
    """Four slices bf16 [BN, BW] of words of codes and bytes int32 [BN, BW], by inline assembly."""
    return tl.inline_asm_elementwise(
        ASM,
        "=&r,=&r,=&r,=&r,r,r,r,r",
        [codes, signs],
        dtype=(tl.bfloat16,) * 4,
        is_pure=True,
        pack=2,
    )


@triton.jit
def _add_escapes(
    acc,  # float32 [BN, BM]
    starts,  # int32 [BN, 1]: the rows' first escapes
    ends,  # int32 [BN, 1]
    first,  # of the escapes of neighbouring rows of the tile
    last,
    x_ptrs,  # [1, BM]: where rows of x begin
    columns_ptr,
    values_ptr,
    COMPUTE: tl.constexpr,
    BE: tl.constexpr,
):
    """acc[r, i] += sum over the escapes e of row r of values[e] * x[i, columns[e]].

    A dot with a matrix that is 0 but for an escape in each column. Splits share the escapes.
    """
    share = tl.cdiv(tl.cdiv(last - first, BE), tl.num_programs(2)) * BE
    begin = first + tl.program_id(2) * share
    end = tl.minimum(begin + share, last)
    for start in range(begin, end, BE):
        entry = start + tl.arange(0, BE)
        inside = entry < end
        column = tl.load(columns_ptr + entry, mask=inside, other=0)
        value = tl.load(values_ptr + entry, mask=inside, other=0.0).to(COMPUTE)
        x = tl.load(x_ptrs + column[:, None], mask=inside[:, None], other=0.0).to(COMPUTE)
        own = (entry[None, :] >= starts) & (entry[None, :] < ends)
        acc = tl.dot(tl.where(own, value[None, :], 0.0), x, acc)
    return acc


@triton.jit
def float12_matmul_kernel(
    x_ptr,  # bf16 [m, k]
    words_ptr,  # int32 [n, width]
    bases_ptr,  # uint8 [n]
    offsets_ptr,  # int32 [n + 1]
    columns_ptr,  # int32 [escapes]
    values_ptr,  # bf16 [escapes]
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # see `store_tile`
    m,
    n,
    k,
    width,  # a multiple of 3 * BW
    blocks_per_split,  # blocks of 3 * BW words
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16; fp32 in the interpreter, which lacks bf16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    BE: tl.constexpr,
    EVEN_K: tl.constexpr,  # k is a multiple of 8 * BW: K needs no masks
    USE_ASM: tl.constexpr,  # NVIDIA; its portable twin makes the same bits
):
    """out[s, i, r] = sum over c in split s of w[r, c] * x[i, c] (+ bias[r]), with exact weights.

    Transposed: the weights are the M side of the dot, so that a batch of 1 to 8 fills the tensor
    core's narrow side (8) instead of wasting 15/16 of the wide one.

    Weights enter the dot as w * 2^(112 - base), escapes as 0; the sum is multiplied by its row's
    power of two, exactly, and what escaped is added.
    Grid: (m / BM, n / BN, splits): programs that read the same weights run together.
    """
    tokens = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    row = tile_rows(tile, n, GATE, BN)
    token = tl.minimum(tokens, m - 1)  # as for rows: the last is computed again, not stored
    # Loaded here, used after the loop: its loads hide the wait.
    base = tl.load(bases_ptr + row).to(tl.int32)
    starts = tl.load(offsets_ptr + row)[:, None]
    ends = tl.load(offsets_ptr + row + 1)[:, None]
    rows: tl.constexpr = BN if GATE == "" else BN // 2
    outputs = n if GATE == "" else n // 2
    tile_ptr = offsets_ptr + tile.to(tl.int64) * rows
    count = tl.minimum(rows, outputs - tile * rows)
    first_escape = tl.load(tile_ptr)
    last_escape = tl.load(tile_ptr + count)
    if GATE != "":  # the rows of up
        first_up = tl.load(tile_ptr + outputs)
        last_up = tl.load(tile_ptr + outputs + count)
    lanes = tl.arange(0, BW)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, width // (3 * BW))
    words_ptrs = words_ptr + row[:, None] * width + lanes[None, :]
    row_ptrs = x_ptr + token[None, :] * k
    x_ptrs = row_ptrs + lanes[:, None]
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    for block in range(first, last):
        codes = tl.load(words_ptrs + block * (3 * BW), eviction_policy="evict_first")
        for half in tl.static_range(2):
            bytes_ptrs = words_ptrs + (block * 3 + 1 + half) * BW
            signs = tl.load(bytes_ptrs, eviction_policy="evict_first")
            if USE_ASM:
                pairs = _pairs(codes, signs, LOW_PAIRS if half == 0 else HIGH_PAIRS)
            for j in tl.static_range(4):
                column = (block * 8 + half * 4 + j) * BW
                if EVEN_K:
                    x = tl.load(x_ptrs + column, eviction_policy="evict_last").to(COMPUTE)
                else:
                    inside = (column + lanes < k)[:, None]
                    x = tl.load(x_ptrs + column, mask=inside, other=0.0).to(COMPUTE)
                if USE_ASM:
                    weight = pairs[j]
                else:
                    code = (codes >> (4 * (4 * half + j))) & 15
                    byte = signs >> (8 * j)
                    bits = ((byte & 128) << 24) | (code << 23) | ((byte & 127) << 16)
                    weight = (bits.to(tl.float32, bitcast=True) * RESCALE).to(COMPUTE)
                acc = tl.dot(weight, x, acc)
    acc *= ((base + 15) << 23).to(tl.float32, bitcast=True)[:, None]  # 2^(base - 112)
    acc = _add_escapes(
        acc, starts, ends, first_escape, last_escape, row_ptrs, columns_ptr, values_ptr, COMPUTE, BE
    )
    if GATE != "":
        acc = _add_escapes(
            acc, starts, ends, first_up, last_up, row_ptrs, columns_ptr, values_ptr, COMPUTE, BE
        )
    store_tile(acc, row, tokens, bias_ptr, out_ptr, tile, split, m, n, HAS_BIAS, GATE, BN, BM)


@triton.jit
def float12_decode_kernel(
    words_ptr,  # int32 [n, width]
    bases_ptr,  # uint8 [n]
    out_ptr,  # int16 [n, k]: the bits of bf16
    n,
    k,
    width,
    BN: tl.constexpr,
    BW: tl.constexpr,
):
    """out[r, c] = w[r, c], or 0 where it is an escape. Grid: (n / BN, width / (3 * BW))."""
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    block = tl.program_id(1)
    row_inside = (rows < n)[:, None]
    base = tl.load(bases_ptr + rows, mask=rows < n, other=0).to(tl.int32)[:, None]
    lanes = tl.arange(0, BW)[None, :]
    words_ptrs = words_ptr + rows[:, None] * width + block * (3 * BW) + lanes
    codes = tl.load(words_ptrs, mask=row_inside, other=0)
    for half in tl.static_range(2):
        signs = tl.load(words_ptrs + (1 + half) * BW, mask=row_inside, other=0)
        for j in tl.static_range(4):
            code = (codes >> (4 * (4 * half + j))) & 15
            byte = signs >> (8 * j)
            exponent = tl.where(code > 0, code + base, 0)
            bits = ((byte & 128) << 8) | (exponent << 7) | (byte & 127)
            column = (block * 8 + half * 4 + j) * BW + lanes
            inside = row_inside & (column < k)
            tl.store(out_ptr + rows[:, None] * k + column, bits.to(tl.int16), mask=inside)


@triton.jit
def float12_escapes_kernel(
    starts_ptr,  # int32 [n]
    ends_ptr,  # int32 [n]
    columns_ptr,  # int32 [escapes]
    values_ptr,  # int16 [escapes]: the bits of bf16
    out_ptr,  # int16 [n, k]
    n,
    k,
    BN: tl.constexpr,
    BE: tl.constexpr,
):
    """out[r, columns[e]] = values[e] for the escapes e of row r. Grid: (n / BN,)."""
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    starts = tl.load(starts_ptr + rows, mask=rows < n, other=0)
    ends = tl.load(ends_ptr + rows, mask=rows < n, other=0)
    for done in range(0, tl.max(ends - starts, 0), BE):
        entry = starts[:, None] + done + tl.arange(0, BE)[None, :]
        inside = entry < ends[:, None]
        column = tl.load(columns_ptr + entry, mask=inside, other=0)
        value = tl.load(values_ptr + entry, mask=inside, other=0)
        tl.store(out_ptr + rows[:, None] * k + column, value, mask=inside)


def matmul(x: Tensor, weight: Packed, bias: Tensor | None, finish: Finish = Finish.SUM) -> Tensor:
    """Computes x @ weight.T + bias on a GPU (or in Triton's interpreter).

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16.
        weight: [N, K], on x's device.
        bias: [N] or None.
        finish: what is returned.

    Returns:
        [M, N] in x.dtype, or what `finish` says. From GEMM_MIN_ROWS rows on the weight is decoded
        once, for cuBLAS.

    Raises:
        LayoutError: an argument has another shape, dtype or device, or is not contiguous.
    """
    check_tensor("x", x, shape=(None, weight.k), dtypes=ACTIVATION_DTYPES)
    m = x.shape[0]
    n = weight.words.shape[0]
    _check_rows(weight.words, weight.bases, weight.k, x.device)
    offsets = weight.offsets
    check_tensor("offsets", offsets, shape=(n + 1,), dtypes=(torch.int32,), device=x.device)
    _check_escapes(weight.columns, weight.values, x.device)
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=x.device)
    if m == 0:
        return finished_like(x, finish, n, splits=1)
    if m < GEMM_MIN_ROWS:
        return product(weight).launch(x, bias, finish)

    def decoded(start: int, stop: int) -> Tensor:
        rows = slice(start, stop)
        starts, ends = offsets[:-1][rows], offsets[1:][rows]
        parts = (weight.words[rows], weight.bases[rows], starts, ends)
        return decode(*parts, weight.columns, weight.values, weight.k)

    return decoded_product(x, n, bias, finish, decoded)


def decode(
    words: Tensor,
    bases: Tensor,
    starts: Tensor,
    ends: Tensor,
    columns: Tensor,
    values: Tensor,
    k: int,
) -> Tensor:
    """Rows of a weight in bf16 [R, k], bit for bit: a kernel, and one for the escapes.

    The arguments are those of `reference.decode`, contiguous.

    Raises:
        LayoutError: an argument has another shape, dtype or device, or is not contiguous.
    """
    device = words.device
    _check_rows(words, bases, k, device)
    n, width = words.shape
    for name, bounds in (("starts", starts), ("ends", ends)):
        check_tensor(name, bounds, shape=(n,), dtypes=(torch.int32,), device=device)
    _check_escapes(columns, values, device)
    check_device(device)
    out = torch.empty(n, k, dtype=torch.bfloat16, device=device)
    if n == 0:
        return out
    bits, tiles = out.view(torch.int16), triton.cdiv(n, DECODED_ROWS)
    float12_decode_kernel[(tiles, width // BLOCK_WORDS)](
        words, bases, bits, n, k, width, BN=DECODED_ROWS, BW=BW, num_warps=2
    )
    if columns.numel():
        float12_escapes_kernel[(tiles,)](
            starts,
            ends,
            columns,
            values.view(torch.int16),
            bits,
            n,
            k,
            BN=DECODED_ROWS,
            BE=BE,
            num_warps=2,
        )
    return out


def tile_heights(k: int) -> tuple[int, ...]:
    """BM for a weight of k columns: with masks over K, 64 rows of x would spill."""
    return (8, 16, 32, 64) if k % BLOCK_COLUMNS == 0 else (8, 16, 32)


def product(weight: Packed) -> Product:
    """The kernel bound to a weight."""
    n, width = weight.words.shape
    return Product(
        kernel=float12_matmul_kernel,
        name="float12",
        n=n,
        k=weight.k,
        steps=width // BLOCK_WORDS,
        bms=tile_heights(weight.k),
        weights=(weight.words, weight.bases, weight.offsets, weight.columns, weight.values),
        sizes=(width,),
        constants={
            "BW": BW,
            "BE": BE,
            "EVEN_K": weight.k % BLOCK_COLUMNS == 0,
            "USE_ASM": has_inline_asm(weight.words.device),
        },
    )


def _check_rows(words: Tensor, bases: Tensor, k: int, device: torch.device) -> None:
    shape = (None, packed_width(k))
    check_tensor("words", words, shape=shape, dtypes=(torch.int32,), device=device)
    check_tensor("bases", bases, shape=(words.shape[0],), dtypes=(torch.uint8,), device=device)


def _check_escapes(columns: Tensor, values: Tensor, device: torch.device) -> None:
    check_tensor("columns", columns, shape=(None,), dtypes=(torch.int32,), device=device)
    shape = (columns.shape[0],)
    check_tensor("values", values, shape=shape, dtypes=(torch.bfloat16,), device=device)
