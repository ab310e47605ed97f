"""Triton kernel of the `int8` layout: activations in bf16, weights of one byte (w8a16)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finished_like
from tersor.kernels.gemv.launch import Product, decoded_product
from tersor.kernels.gemv.triton import has_inline_asm, store_tile, tile_rows
from tersor.kernels.int8.packing import BK, padded_k

BMS = (8, 16, 32)

# Four codes of a word to two bf16 pairs. With the sign bit s and the other seven bits l, a code is
# l - 128 s. bf16 0x4300 | l is 128 + l and 0x4300 | (s << 7) is 128 + 128 s (bit 7 is the lowest of
# the exponent): their difference is the code, exactly. Two weights take PRMT, two LOP3 and an FMA.
UNPACK_ASM = tl.constexpr("""
{
    .reg .b32 lo, hi, low, sign, minus_one;
    mov.b32 minus_one, 0xBF80BF80;
    prmt.b32 lo, $2, 0, 0x4140;
    prmt.b32 hi, $2, 0, 0x4342;
    lop3.b32 low, lo, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 sign, lo, 0x00800080, 0x43004300, 0xEA;
    fma.rn.bf16x2 $0, sign, minus_one, low;
    lop3.b32 low, hi, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 sign, hi, 0x00800080, 0x43004300, 0xEA;
    fma.rn.bf16x2 $1, sign, minus_one, low;
}
""")


@triton.jit
def _unpack(codes):
    """Codes int8 [BN, BK] to bf16, by inline assembly; `codes.to` makes the same bits."""
    return tl.inline_asm_elementwise(
        UNPACK_ASM, "=&r,=&r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4
    )


@triton.jit
def int8_matmul_kernel(
    x_ptr,  # bf16 [m, k]
    codes_ptr,  # int8 [n, padded_k], zero beyond k
    scales_ptr,  # bf16 [n]
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # see `store_tile`
    m,
    n,
    k,
    padded_k,
    steps_per_split,  # of BK columns
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16; fp32 in the interpreter, which lacks bf16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN_K: tl.constexpr,  # k is a multiple of BK: K needs no masks
    USE_ASM: tl.constexpr,  # NVIDIA
):
    """out[s, i, r] = scales[r] * sum over c in split s of codes[r, c] * x[i, c] (+ bias[r]).

    Transposed: the weights are the M side of the dot, so that a batch of 1 to 8 fills the tensor
    core's narrow side (8) instead of wasting 15/16 of the wide one.
    Grid: (m / BM, n / BN, splits): programs that read the same weights run together.
    """
    tokens = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    row = tile_rows(tile, n, GATE, BN)
    token = tl.minimum(tokens, m - 1)  # as for rows: the last is computed again, not stored
    columns = tl.arange(0, BK)
    first = split * steps_per_split * BK
    last = tl.minimum(first + steps_per_split * BK, padded_k)
    codes_ptrs = codes_ptr + row[:, None] * padded_k + columns[None, :]
    x_ptrs = x_ptr + token[None, :] * k + columns[:, None]
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    for start in range(first, last, BK):
        if EVEN_K:
            codes = tl.load(codes_ptrs + start, eviction_policy="evict_first")
            x = tl.load(x_ptrs + start, eviction_policy="evict_last")
        else:
            code_mask = (start + columns < padded_k)[None, :]
            x_mask = (start + columns < k)[:, None]
            codes = tl.load(codes_ptrs + start, mask=code_mask, other=0)
            x = tl.load(x_ptrs + start, mask=x_mask, other=0.0)
        weight = _unpack(codes) if USE_ASM else codes.to(COMPUTE)
        acc = tl.dot(weight, x.to(COMPUTE), acc)
    acc *= tl.load(scales_ptr + row).to(tl.float32)[:, None]
    store_tile(acc, row, tokens, bias_ptr, out_ptr, tile, split, m, n, HAS_BIAS, GATE, BN, BM)


def matmul(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, finish: Finish = Finish.SUM
) -> Tensor:
    """Computes x @ (codes * scales[:, None]).T + bias on a GPU (or in Triton's interpreter).

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16.
        codes: int8 [N, padded_k(K)] contiguous, zero beyond K.
        scales: bf16 [N].
        bias: [N] or None.
        finish: what is returned.

    Returns:
        [M, N] in x.dtype, or what `finish` says. From GEMM_MIN_ROWS rows on the codes are decoded
        once, for cuBLAS.

    Raises:
        LayoutError: an argument has another shape, dtype or device, or is not contiguous.
    """
    check_tensor("x", x, shape=(None, None), dtypes=ACTIVATION_DTYPES)
    m, k = x.shape
    check_tensor("codes", codes, shape=(None, padded_k(k)), dtypes=(torch.int8,), device=x.device)
    n = codes.shape[0]
    check_tensor("scales", scales, shape=(n,), dtypes=(torch.bfloat16,), device=x.device)
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=x.device)
    if m == 0:
        return finished_like(x, finish, n, splits=1)
    if m < GEMM_MIN_ROWS:
        return product(codes, scales, k).launch(x, bias, finish)
    return decoded_product(
        x, n, bias, finish, lambda start, stop: codes[start:stop, :k].to(torch.bfloat16), scales
    )


def product(codes: Tensor, scales: Tensor, k: int) -> Product:
    """The kernel bound to a weight of k columns."""
    n, width = codes.shape
    return Product(
        kernel=int8_matmul_kernel,
        name="int8",
        n=n,
        k=k,
        steps=triton.cdiv(width, BK),
        bms=BMS,
        weights=(codes, scales),
        sizes=(width,),
        constants={
            "BK": BK,
            "EVEN_K": k % BK == 0,
            "USE_ASM": has_inline_asm(codes.device),
        },
    )
