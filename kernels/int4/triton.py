"""Triton kernels of the `int4` layout: activations in bf16, weights of four bits (w4a16).

Weights lie in words as drawn in packing.py: nibble j of BW neighbouring words is a contiguous slice
of K, and every word is loaded exactly once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.errors import LayoutError
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finished_like
from tersor.kernels.gemv.launch import Product, decoded_product
from tersor.kernels.gemv.triton import compute_dtype, has_inline_asm, store_tile, tile_rows
from tersor.kernels.int4.packing import block_words, kernel_name

# Two neighbouring words to eight bf16 pairs, nibble j of both in pair j. bf16 0x4300 | q is 128 +
# q, since the last bit of its 7-bit mantissa is worth 1 there; PRMT gathers the low (high) halves
# of both words, so one shift and one LOP3 (a & 0x000F000F | 0x43004300) make two weights.
UNPACK_ASM = tl.constexpr("""
{
    .reg .b32 lo, hi, t;
    prmt.b32 lo, $8, $9, 0x5410;
    prmt.b32 hi, $8, $9, 0x7632;
    lop3.b32 $0, lo, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, lo, 4;
    lop3.b32 $1, t, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, lo, 8;
    lop3.b32 $2, t, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, lo, 12;
    lop3.b32 $3, t, 0x000F000F, 0x43004300, 0xEA;
    lop3.b32 $4, hi, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, hi, 4;
    lop3.b32 $5, t, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, hi, 8;
    lop3.b32 $6, t, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, hi, 12;
    lop3.b32 $7, t, 0x000F000F, 0x43004300, 0xEA;
}
""")


@triton.jit
def _unpack(words):
    """Unpacks words int32 [BN, BW] to eight bf16 [BN, BW] of 128 + code, by inline assembly."""
    return tl.inline_asm_elementwise(
        UNPACK_ASM,
        "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r",
        [words],
        dtype=(tl.bfloat16,) * 8,
        is_pure=True,
        pack=2,
    )


@triton.jit
def int4_matmul_kernel(
    x_ptr,  # bf16 [m, k]
    words_ptr,  # int32 [n, words]
    scales_ptr,  # bf16 [groups, n]
    zeros_ptr,  # uint8 [groups, n], read if HAS_ZEROS
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # see `store_tile`
    m,
    n,
    k,
    words,  # a multiple of BW
    groups,
    blocks_per_split,  # blocks of BW words
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16; fp32 in the interpreter, which lacks bf16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    EVEN_K: tl.constexpr,  # k is a multiple of 8 * BW: K needs no masks
    USE_ASM: tl.constexpr,  # NVIDIA; its portable twin makes the same bits
    GROUP: tl.constexpr,  # columns per scale, a multiple of BW * SLICES; 0: one group
    SLICES: tl.constexpr,  # nibble slices that surely share a scale: 1, 2, 4 or 8
):
    """out[s, i, r] = sum over c in split s of w[r, c] * x[i, c] (+ bias[r]).

    w[r, c] = (code[r, c] - zero[r, g]) * scale[r, g], g = c / GROUP

    Transposed: the weights are the M side of the dot, so that a batch of 1 to 8 fills the tensor
    core's narrow side (8) instead of wasting 15/16 of the wide one.

    Codes enter the dot as 128 + code, exact in bf16. The offset leaves through the sum of the
    activations, which a dot with ones gives in the layout it is needed in:
        sum of (code - zero) * x = sum of (128 + code) * x - (128 + zero) * sum of x
    That is one more dot for all rows of the tile instead of a subtraction per weight. Sums are
    float32; the scale is applied to the sum of its group.
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
    x_ptrs = x_ptr + token[None, :] * k + lanes[:, None]
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    ones = tl.full((BN, BW), 1.0, dtype=COMPUTE)
    for block in range(first, last):
        packed = tl.load(words_ptrs + block * BW, eviction_policy="evict_first")
        if USE_ASM:
            pairs = _unpack(packed)
        for part in tl.static_range(8 // SLICES):
            start = (block * 8 + part * SLICES) * BW
            group_row = row
            if GROUP > 0:  # slices of zero padding may lie beyond the last group
                group_row += tl.minimum(start // GROUP, groups - 1).to(tl.int64) * n
            scale = tl.load(scales_ptr + group_row).to(tl.float32)[:, None]
            offset = 136.0
            if HAS_ZEROS:
                offset = tl.load(zeros_ptr + group_row).to(tl.float32)[:, None] + 128.0
            total = tl.zeros((BN, BM), dtype=tl.float32)
            x_total = tl.zeros((BN, BM), dtype=tl.float32)
            for i in tl.static_range(SLICES):
                column = start + i * BW
                if EVEN_K:
                    x = tl.load(x_ptrs + column, eviction_policy="evict_last").to(COMPUTE)
                else:
                    inside = (column + lanes < k)[:, None]
                    x = tl.load(x_ptrs + column, mask=inside, other=0.0).to(COMPUTE)
                if USE_ASM:
                    raised = pairs[part * SLICES + i]
                else:
                    code = (packed >> (4 * (part * SLICES + i))) & 15
                    if COMPUTE == tl.bfloat16:  # noqa: SIM300
                        raised = (code | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True)
                    else:
                        raised = (code + 128).to(COMPUTE)
                total = tl.dot(raised, x, total)
                x_total = tl.dot(ones, x, x_total)
            acc += (total - offset * x_total) * scale
    store_tile(acc, row, tokens, bias_ptr, out_ptr, tile, split, m, n, HAS_BIAS, GATE, BN, BM)


@triton.jit
def int4_decode_kernel(
    words_ptr,  # int32 [n, words]
    scales_ptr,  # bf16 [groups, all_n]
    zeros_ptr,  # uint8 [groups, all_n], read if HAS_ZEROS
    out_ptr,  # [n, k]
    n,
    k,
    words,
    groups,
    all_n,  # rows of the whole weight, of which this launch decodes n
    HAS_ZEROS: tl.constexpr,
    GROUP: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
):
    """out[r, c] = (code[r, c] - zero[r, g]) * scale[r, g], g = c / GROUP.

    Grid: (n / BN, words / BW).
    """
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    block = tl.program_id(1)
    row_inside = rows < n
    lanes = tl.arange(0, BW)
    words_ptrs = words_ptr + rows[:, None] * words + (block * BW + lanes)[None, :]
    packed = tl.load(words_ptrs, mask=row_inside[:, None], other=0)
    for j in tl.static_range(8):
        start = (block * 8 + j) * BW
        group_row = rows
        if GROUP > 0:
            group_row += tl.minimum(start // GROUP, groups - 1).to(tl.int64) * all_n
        scale = tl.load(scales_ptr + group_row, mask=row_inside, other=0.0).to(tl.float32)
        code = ((packed >> (4 * j)) & 15).to(tl.float32)
        if HAS_ZEROS:
            zero = tl.load(zeros_ptr + group_row, mask=row_inside, other=0).to(tl.float32)
            code -= zero[:, None]
        else:
            code -= 8.0
        weight = (code * scale[:, None]).to(out_ptr.dtype.element_ty)
        inside = row_inside[:, None] & (start + lanes < k)[None, :]
        tl.store(out_ptr + rows[:, None] * k + (start + lanes)[None, :], weight, mask=inside)


def matmul(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    bias: Tensor | None,
    finish: Finish = Finish.SUM,
) -> Tensor:
    """Computes x @ weight.T + bias on a GPU (or in Triton's interpreter).

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16.
        words: int32 [N, W] contiguous, as `pack_words` makes them.
        scales: bf16 [G, N], G = ceil(K / group).
        zeros: uint8 [G, N], or None for 8 everywhere.
        group: columns per scale, one that `block_words` takes.
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
    _check_weight(words, scales, zeros, group, k, x.device)
    n = words.shape[0]
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=x.device)
    if m == 0:
        return finished_like(x, finish, n, splits=1)
    if m < GEMM_MIN_ROWS:
        return product(words, scales, zeros, group, k).launch(x, bias, finish)
    return decoded_product(
        x,
        n,
        bias,
        finish,
        lambda start, stop: decode(words, scales, zeros, group, k, torch.bfloat16, start, stop),
    )


def decode(
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    k: int,
    dtype: torch.dtype,
    start: int,
    stop: int,
) -> Tensor:
    """Rows start..stop (or the end) of the weight: [rows, k] in `dtype`, fp32 or bf16.

    The other arguments are those of `matmul`; raises LayoutError like it.
    """
    _check_weight(words, scales, zeros, group, k, words.device)
    compute_dtype(words.device)
    part = words[start:stop]
    n = part.shape[0]
    bw = block_words(group, k)
    out = torch.empty(n, k, dtype=dtype, device=words.device)
    int4_decode_kernel[(triton.cdiv(n, 16), words.shape[1] // bw)](
        part,
        scales[:, start:],
        scales if zeros is None else zeros[:, start:],
        out,
        n,
        k,
        words.shape[1],
        scales.shape[0],
        words.shape[0],
        HAS_ZEROS=zeros is not None,
        GROUP=0 if group >= k else group,
        BN=16,
        BW=bw,
        num_warps=4,
    )
    return out


def slices_per_scale(group: int, bw: int, k: int) -> int:
    """How many consecutive slices of `bw` columns surely share a scale: 1, 2, 4 or 8."""
    if group >= k:
        return 8
    return next(count for count in (8, 4, 2, 1) if group % (bw * count) == 0)


def tile_heights(slices: int) -> tuple[int, ...]:
    """BM by `slices_per_scale`: with a scale per slice, 16 rows of x would spill on sm_80."""
    return (8,) if slices == 1 else (8, 16)


def product(words: Tensor, scales: Tensor, zeros: Tensor | None, group: int, k: int) -> Product:
    """The kernel bound to a weight of k columns."""
    n, width = words.shape
    bw = block_words(group, k)
    slices = slices_per_scale(group, bw, k)
    return Product(
        kernel=int4_matmul_kernel,
        name=kernel_name(group, k, zeros=zeros is not None),
        n=n,
        k=k,
        steps=width // bw,
        bms=tile_heights(slices),
        weights=(words, scales, scales if zeros is None else zeros),
        sizes=(width, scales.shape[0]),
        constants={
            "BW": bw,
            "HAS_ZEROS": zeros is not None,
            "EVEN_K": k % (8 * bw) == 0,
            "USE_ASM": has_inline_asm(words.device),
            "GROUP": 0 if group >= k else group,
            "SLICES": slices,
        },
    )


def _check_weight(
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    k: int,
    device: torch.device,
) -> None:
    bw = block_words(group, k)
    if bw is None:
        raise LayoutError(f"`group` is {group}, expected a multiple of 16 or at least K = {k}")
    width = -(-k // (8 * bw)) * bw
    check_tensor("words", words, shape=(None, width), dtypes=(torch.int32,), device=device)
    shape = (-(-k // group), words.shape[0])
    check_tensor("scales", scales, shape=shape, dtypes=(torch.bfloat16,), device=device)
    if zeros is not None:
        check_tensor("zeros", zeros, shape=shape, dtypes=(torch.uint8,), device=device)
