"""Triton kernels of w8a8: activations rounded to signed bytes, integer sums, one scaling.

The sums are exact, so how K is cut and which product computes them leaves no trace: a row of x has
the same bits in every batch. `enable_fp_fusion` is off where numbers are scaled, because a fused
multiply-add would round differently from reference.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.gated.triton import activated
from tersor.kernels.gemv.config import GEMM_MIN_ROWS, tile_config
from tersor.kernels.gemv.finish import Finish, finished_like
from tersor.kernels.gemv.triton import check_device, register_options, store_tile, tile_rows
from tersor.kernels.int8.packing import BK, padded_k
from tersor.kernels.int8.w8a8.reference import SMALLEST, TOP, check_columns

BMS = (8, 16, 32)
QUANTIZE_BLOCK = 1024
FINISH_BLOCK = 512
# Integer sums of one product at a time: 256 MiB.
SUMS = 1 << 26
# 1.5 * 2^23: adding it to a float32 below 2^22 rounds to an integer, ties to even.
ROUND = tl.constexpr(12582912.0)
_TOP = tl.constexpr(float(TOP))
_INVERSE_TOP = tl.constexpr(1 / TOP)
_SMALLEST = tl.constexpr(SMALLEST)


@triton.jit
def quantize_tokens_kernel(
    x_ptr,  # [m, k]
    codes_ptr,  # int8 [m, padded_k]
    scales_ptr,  # float32 [m]
    k,
    padded_k,
    BLOCK: tl.constexpr,
):
    """codes[i] = round(x[i] * 127 / absmax(x[i])), scales[i] = absmax(x[i]) / 127. Grid: m."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    peaks = tl.zeros((BLOCK,), dtype=tl.float32)
    bad = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, k, BLOCK):
        column = start + lane
        x = tl.load(x_ptr + token * k + column, mask=column < k, other=0.0).to(tl.float32)
        peaks = tl.maximum(peaks, tl.abs(x))
        bad |= (x != x).to(tl.int32)  # a maximum may drop NaN
    peak = tl.max(peaks, 0)
    peak = tl.where(peak < _SMALLEST, 0.0, peak)
    inverse = tl.div_rn(tl.zeros_like(peak) + _TOP, tl.where(peak > 0, peak, float("inf")))
    scale = tl.where(tl.max(bad, 0) > 0, float("nan"), peak * _INVERSE_TOP)
    tl.store(scales_ptr + token, scale)
    for start in range(0, padded_k, BLOCK):
        column = start + lane
        x = tl.load(x_ptr + token * k + column, mask=column < k, other=0.0).to(tl.float32)
        code = ((x * inverse + ROUND) - ROUND).to(tl.int32).to(tl.int8)
        tl.store(codes_ptr + token * padded_k + column, code, mask=column < padded_k)


@triton.jit
def w8a8_matmul_kernel(
    x_ptr,  # int8 [m, padded_k], zero beyond k
    x_scales_ptr,  # float32 [m]
    codes_ptr,  # int8 [n, padded_k], zero beyond k
    scales_ptr,  # bf16 [n]
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # see `store_tile`; int32 if SPLIT
    m,
    n,
    padded_k,
    steps_per_split,  # of BK columns
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    SPLIT: tl.constexpr,  # there are several splits: integer sums are stored, for `finish_kernel`
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN_K: tl.constexpr,  # padded_k is a multiple of BK: K needs no masks
):
    """out[i, r] = (sum over c of codes[r, c] * x[i, c]) * x_scales[i] * scales[r] (+ bias[r]).

    Transposed and cut as `int8_matmul_kernel`, with the tensor core's m16n8k32 for bytes.
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
    x_ptrs = x_ptr + token[None, :] * padded_k + columns[:, None]
    acc = tl.zeros((BN, BM), dtype=tl.int32)
    for start in range(first, last, BK):
        if EVEN_K:
            codes = tl.load(codes_ptrs + start, eviction_policy="evict_first")
            x = tl.load(x_ptrs + start, eviction_policy="evict_last")
        else:
            inside = start + columns < padded_k
            codes = tl.load(codes_ptrs + start, mask=inside[None, :], other=0)
            x = tl.load(x_ptrs + start, mask=inside[:, None], other=0)
        acc = tl.dot(codes, x, acc, out_dtype=tl.int32)
    if SPLIT:
        store_tile(acc, row, tokens, bias_ptr, out_ptr, tile, split, m, n, False, "", BN, BM)
    else:
        y = acc.to(tl.float32) * tl.load(x_scales_ptr + token)[None, :]
        y *= tl.load(scales_ptr + row).to(tl.float32)[:, None]
        store_tile(y, row, tokens, bias_ptr, out_ptr, tile, split, m, n, HAS_BIAS, GATE, BN, BM)


@triton.jit
def _finished(
    sums_ptr, x_scale, scales_ptr, bias_ptr, token, column, inside, m, n, splits, HAS_BIAS
):
    """Float32 products of one token, from integer sums [splits, m, n]."""
    total = tl.zeros_like(column).to(tl.int32)
    pointers = sums_ptr + token * n + column
    part = tl.full((), n, dtype=tl.int64) * m  # an m or n of 1 is a constant, which has no .to
    for _ in range(splits):
        total += tl.load(pointers, mask=inside, other=0)
        pointers += part
    y = total.to(tl.float32) * x_scale
    y *= tl.load(scales_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    return y


@triton.jit
def w8a8_finish_kernel(
    sums_ptr,  # int32 [splits, m, n]
    x_scales_ptr,  # float32 [m]
    scales_ptr,  # bf16 [n]
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # [m, n], or [m, n / 2] if gated
    m,
    n,
    splits,
    HAS_BIAS: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds integer sums up, scales, adds bias and gates. Grid: (m, columns of out / BLOCK)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    width = n
    if GATE != "":
        width = n // 2
    inside = column < width
    x_scale = tl.load(x_scales_ptr + token)
    y = _finished(
        sums_ptr, x_scale, scales_ptr, bias_ptr, token, column, inside, m, n, splits, HAS_BIAS
    )
    if GATE != "":
        up = column + width
        y = activated(y, GATE) * _finished(
            sums_ptr, x_scale, scales_ptr, bias_ptr, token, up, inside, m, n, splits, HAS_BIAS
        )
    tl.store(out_ptr + token * width + column, y.to(out_ptr.dtype.element_ty), mask=inside)


def matmul(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, finish: Finish = Finish.SUM
) -> Tensor:
    """Computes x, rounded to bytes, @ (codes * scales[:, None]).T + bias on a GPU.

    Args:
        x: [M, K] contiguous, fp32 or bf16.
        codes: int8 [N, padded_k(K)] contiguous, zero beyond K.
        scales: bf16 [N].
        bias: [N] or None.
        finish: what is returned; partials are always one part.

    Returns:
        [M, N] in x.dtype, or what `finish` says. A row's bits do not depend on M.

    Raises:
        LayoutError: an argument has another shape, dtype or device, or is not contiguous.
    """
    check_tensor("x", x, shape=(None, None), dtypes=ACTIVATION_DTYPES)
    m, k = x.shape
    check_columns(k)
    check_tensor("codes", codes, shape=(None, padded_k(k)), dtypes=(torch.int8,), device=x.device)
    n = codes.shape[0]
    check_tensor("scales", scales, shape=(n,), dtypes=(torch.bfloat16,), device=x.device)
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=x.device)
    out = finished_like(x, finish, n, splits=1)
    if m == 0:
        return out
    x_codes, x_scales = quantize_tokens(x, codes.shape[1])
    operands = _Operands(
        x_codes=x_codes, x_scales=x_scales, codes=codes, scales=scales, bias=bias, gate=finish.gate
    )
    # cuBLASLt's int8 product wants more than 16 rows, and N in multiples of 8.
    product = _gemm if m >= GEMM_MIN_ROWS and n % 8 == 0 else _skinny
    product(operands, out.view(m, -1))
    return out


def quantize_tokens(x: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """What reference.py's does, to the same bits, for x of at least one row."""
    check_device(x.device)
    m, k = x.shape
    codes = torch.empty(m, columns, dtype=torch.int8, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    quantize_tokens_kernel[(m,)](
        x, codes, scales, k, columns, BLOCK=QUANTIZE_BLOCK, num_warps=8, enable_fp_fusion=False
    )
    return codes, scales


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operands:
    """Of one product whose activations are quantized, and the activation that gates it, or ""."""

    x_codes: Tensor  # int8 [M, Kp]
    x_scales: Tensor  # float32 [M]
    codes: Tensor  # int8 [N, Kp]
    scales: Tensor  # bf16 [N]
    bias: Tensor | None  # [N]
    gate: str

    @property
    def bias_or_any(self) -> Tensor:
        """A pointer that is not read where there is no bias."""
        return self.x_scales if self.bias is None else self.bias


def _skinny(operands: _Operands, out: Tensor) -> None:
    x_codes, codes = operands.x_codes, operands.codes
    m, n, width = x_codes.shape[0], codes.shape[0], codes.shape[1]
    steps = triton.cdiv(width, BK)
    config = tile_config("int8.w8a8", m=m, n=n, k=width, steps=steps, bms=BMS, device=out.device)
    split = config.splits > 1
    gate = "" if split else operands.gate
    target = out
    if split:
        target = torch.empty(config.splits, m, n, dtype=torch.int32, device=out.device)
    tiles = triton.cdiv(n // 2, config.bn // 2) if gate else triton.cdiv(n, config.bn)
    w8a8_matmul_kernel[(triton.cdiv(m, config.bm), tiles, config.splits)](
        x_codes,
        operands.x_scales,
        codes,
        operands.scales,
        operands.bias_or_any,
        target,
        m,
        n,
        width,
        config.steps_per_split,
        HAS_BIAS=operands.bias is not None,
        GATE=gate,
        SPLIT=split,
        BM=config.bm,
        BN=config.bn,
        BK=BK,
        EVEN_K=width % BK == 0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
        **register_options(out.device),
    )
    if split:
        _finish(target, operands, out)


def _gemm(operands: _Operands, out: Tensor) -> None:
    x_codes, codes = operands.x_codes, operands.codes
    # Equal parts: of GEMM_MIN_ROWS rows or more, none then has less than 17.
    parts = -(-x_codes.shape[0] // max(32, SUMS // codes.shape[0]))
    blocks = (tensor.tensor_split(parts) for tensor in (x_codes, operands.x_scales, out))
    for x_part, scale_part, out_part in zip(*blocks, strict=True):
        sums = torch._int_mm(x_part, codes.T)  # noqa: SLF001  # the only way to cuBLASLt's
        _finish(sums[None], replace(operands, x_scales=scale_part), out_part)


def _finish(sums: Tensor, operands: _Operands, out: Tensor) -> None:
    """From integer sums [S, M, N] to out [M, N], or [M, N / 2] if gated."""
    splits, m, n = sums.shape
    w8a8_finish_kernel[(m, triton.cdiv(out.shape[1], FINISH_BLOCK))](
        sums,
        operands.x_scales,
        operands.scales,
        operands.bias_or_any,
        out,
        m,
        n,
        splits,
        HAS_BIAS=operands.bias is not None,
        GATE=operands.gate,
        BLOCK=FINISH_BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
