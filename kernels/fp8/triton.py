"""Triton kernels of the `fp8` layout: activations in bf16, weights of one e4m3 byte (w8a16)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.fp8.packing import BK, kernel_name, padded_k
from tersor.kernels.fp8.prefill import can_scale_fp8, decoded_matmul, scaled_matmul
from tersor.kernels.fp8.reference import BLOCK, SMALLEST
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finish_product, finished_like
from tersor.kernels.gemv.launch import Product
from tersor.kernels.gemv.triton import check_device, has_inline_asm, store_tile, tile_rows

BMS = (8, 16, 32)
ROUND_BLOCK = 1024
_SMALLEST = tl.constexpr(SMALLEST)
_BLOCK = tl.constexpr(BLOCK)

# Four codes of a word to two bf16 pairs. PRMT puts a byte into each half and repeats its sign above
# it; four bits up, sign and exponent are where bf16 has them, with a bias of 127 in place of 7. The
# product with 2^120 mends that, exactly, and makes normal numbers of subnormal ones (bf16
# multiplication keeps subnormals). Adding -0 keeps the sign of zero.
UNPACK_ASM = tl.constexpr("""
{
    .reg .b32 lo, hi, bias, zero;
    mov.b32 bias, 0x7B807B80;
    mov.b32 zero, 0x80008000;
    prmt.b32 lo, $2, $2, 0x9180;
    prmt.b32 hi, $2, $2, 0xB3A2;
    shl.b32 lo, lo, 4;
    shl.b32 hi, hi, 4;
    and.b32 lo, lo, 0x87F087F0;
    and.b32 hi, hi, 0x87F087F0;
    fma.rn.bf16x2 $0, lo, bias, zero;
    fma.rn.bf16x2 $1, hi, bias, zero;
}
""")


@triton.jit
def _unpack(codes, COMPUTE: tl.constexpr, USE_ASM: tl.constexpr):
    """Codes uint8 [BN, BK] to their numbers, exactly, in COMPUTE.

    The portable twin goes through float16, whose subnormals every device converts: 2^8 smaller.
    """
    if USE_ASM:
        return tl.inline_asm_elementwise(
            UNPACK_ASM, "=&r,=&r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4
        )
    bits = (codes.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4080
    return (bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0).to(COMPUTE)


@triton.jit
def fp8_matmul_kernel(
    x_ptr,  # bf16 [m, k]
    codes_ptr,  # uint8 [n, padded_k], zero beyond k
    scales_ptr,  # float32 [n], or [ceil(n / 128), scale_columns] if BLOCKS
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # see `store_tile`
    m,
    n,
    k,
    padded_k,
    scale_columns,
    steps_per_split,  # of BK columns
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    COMPUTE: tl.constexpr,  # dtype of the products: bf16; fp32 in the interpreter, which lacks bf16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN_K: tl.constexpr,  # k is a multiple of BK: K needs no masks
    USE_ASM: tl.constexpr,  # NVIDIA; its portable twin makes the same bits
    BLOCKS: tl.constexpr,  # a scale per 128 x 128 weights, which BK columns share
):
    """out[s, i, r] = sum over c in split s of number[r, c] * scale * x[i, c] (+ bias[r]).

    Transposed and cut as `int8_matmul_kernel`. Scales are applied to the float32 sums of the
    columns that share them.
    Grid: (m / BM, n / BN, splits).
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
    block_ptrs = scales_ptr + row // _BLOCK * scale_columns
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
        number = _unpack(codes, COMPUTE, USE_ASM)
        if BLOCKS:
            scale = tl.load(block_ptrs + start // BK)
            acc += tl.dot(number, x.to(COMPUTE)) * scale[:, None]
        else:
            acc = tl.dot(number, x.to(COMPUTE), acc)
    if not BLOCKS:
        acc *= tl.load(scales_ptr + row)[:, None]
    store_tile(acc, row, tokens, bias_ptr, out_ptr, tile, split, m, n, HAS_BIAS, GATE, BN, BM)


@triton.jit
def round_tokens_kernel(
    x_ptr,  # [m, k]
    out_ptr,  # [m, k]
    k,
    BLOCK: tl.constexpr,
):
    """out[i] = x[i] rounded to e4m3 numbers times a power of two, as in reference.py. Grid: m.

    A number with exponent e has steps of 2^(e - 3), but not below 2^-9 times the power of two.
    Adding 1.5 * 2^23 steps and taking them away again rounds to whole steps, ties to even.
    """
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    peaks = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, k, BLOCK):
        column = start + lane
        x = tl.load(x_ptr + token * k + column, mask=column < k, other=0.0).to(tl.float32)
        peaks = tl.maximum(peaks, tl.abs(x))
    peak = tl.max(peaks, 0)
    # 448 is 1.75 * 2^8: the addend carries into the exponent where the mantissa is above 1.75.
    power = (peak.to(tl.int32, bitcast=True) + 0x1FFFFF) >> 23  # biased exponent of scale * 2^8
    for start in range(0, k, BLOCK):
        column = start + lane
        x = tl.load(x_ptr + token * k + column, mask=column < k, other=0.0).to(tl.float32)
        exponent = (x.to(tl.int32, bitcast=True) >> 23) & 0xFF
        exponent = tl.maximum(exponent, power - 14)  # e4m3's smallest normal number is 2^-6
        round_by = ((tl.minimum(exponent + 20, 254) << 23) | 0x400000).to(tl.float32, bitcast=True)
        y = (x + round_by) - round_by
        y = tl.where(peak < _SMALLEST, 0.0, y)
        tl.store(out_ptr + token * k + column, y.to(out_ptr.dtype.element_ty), mask=column < k)


def matmul(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    finish: Finish = Finish.SUM,
    *,
    fp8_activations: bool = False,
) -> Tensor:
    """Computes x @ weight.T + bias on a GPU (or in Triton's interpreter).

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16.
        codes: e4m3 as uint8 [N, padded_k(K)] contiguous, zero beyond K, without NaN.
        scales: float32 [N], or [ceil(N / 128), ceil(K / 128)].
        bias: [N] or None.
        finish: what is returned.
        fp8_activations: round x first, token by token.

    Returns:
        [M, N] in x.dtype, or what `finish` says. From GEMM_MIN_ROWS rows on a scaled fp8 product
        where activations are rounded and the device has one, otherwise the codes are decoded once
        for cuBLAS.

    Raises:
        LayoutError: an argument has another shape, dtype or device, or is not contiguous.
    """
    check_tensor("x", x, shape=(None, None), dtypes=ACTIVATION_DTYPES)
    m, k = x.shape
    blocks = scales.dim() == 2
    width = padded_k(k, blocks=blocks)
    check_tensor("codes", codes, shape=(None, width), dtypes=(torch.uint8,), device=x.device)
    n = codes.shape[0]
    shape = (-(-n // BLOCK), -(-k // BLOCK)) if blocks else (n,)
    check_tensor("scales", scales, shape=shape, dtypes=(torch.float32,), device=x.device)
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=x.device)
    if m == 0:
        return finished_like(x, finish, n, splits=1)
    if m >= GEMM_MIN_ROWS and fp8_activations and can_scale_fp8(codes, scales):
        return finish_product(scaled_matmul(x, codes, scales, bias), finish)
    if fp8_activations:
        x = round_tokens(x)
    if m < GEMM_MIN_ROWS:
        return product(codes, scales, k).launch(x, bias, finish)
    return decoded_matmul(x, codes, scales, bias, finish)


def round_tokens(x: Tensor) -> Tensor:
    """What reference.py's does, to the same bits, for x of at least one row."""
    check_device(x.device)
    out = torch.empty_like(x)
    round_tokens_kernel[(x.shape[0],)](
        x, out, x.shape[1], BLOCK=ROUND_BLOCK, num_warps=8, enable_fp_fusion=False
    )
    return out


def product(codes: Tensor, scales: Tensor, k: int) -> Product:
    """The kernel bound to a weight of k columns."""
    n, width = codes.shape
    blocks = scales.dim() == 2
    return Product(
        kernel=fp8_matmul_kernel,
        name=kernel_name(blocks=blocks),
        n=n,
        k=k,
        steps=triton.cdiv(width, BK),
        bms=BMS,
        weights=(codes, scales),
        sizes=(width, scales.shape[-1]),
        constants={
            "BK": BK,
            "EVEN_K": k % BK == 0,
            "USE_ASM": has_inline_asm(codes.device),
            "BLOCKS": blocks,
        },
    )
