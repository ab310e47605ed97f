"""Triton kernel of the `int8` layout: activations in bf16, weights of one byte (w8a16)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.cpu import finished
from tersor.kernels.int8.packing import padded_k
from tersor.kernels.splitk.config import (
    BN,
    DECODED_ELEMENTS,
    GEMM_MIN_ROWS,
    NUM_STAGES,
    NUM_WARPS,
    tile_config,
)
from tersor.kernels.splitk.triton import compute_dtype, register_options, splitk_sum

BK = 128
BMS = (8, 16, 32)


@triton.jit
def int8_matmul_kernel(
    x_ptr,  # bf16 [m, k]
    codes_ptr,  # int8 [n, padded_k], zero beyond k
    scales_ptr,  # bf16 [n]
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # [splits, m, n]
    m,
    n,
    k,
    padded_k,
    k_per_split,  # a multiple of BK
    HAS_BIAS: tl.constexpr,  # only with one split
    EVEN_K: tl.constexpr,  # k is a multiple of BK: K needs no masks
    COMPUTE: tl.constexpr,  # dtype of the products: bf16; fp32 in the interpreter, which lacks bf16
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """out[s, i, r] = scales[r] * sum over c in split s of codes[r, c] * x[i, c] (+ bias[r]).

    Transposed: the weights are the M side of the dot, so that a batch of 1 to 8 fills the tensor
    core's narrow side (8) instead of wasting 15/16 of the wide one.
    Grid: (m / BM, n / BN, splits): programs that read the same weights run together.
    """
    tokens = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    rows = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    # Beyond the edge the last row or token is computed again and not stored: no masks in the loop.
    row = tl.minimum(rows, n - 1)
    token = tl.minimum(tokens, m - 1)
    columns = tl.arange(0, BK)
    first = split * k_per_split
    last = tl.minimum(first + k_per_split, padded_k)
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
        acc = tl.dot(codes.to(COMPUTE), x.to(COMPUTE), acc)
    acc *= tl.load(scales_ptr + row).to(tl.float32)[:, None]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + row).to(tl.float32)[:, None]
    out_ptrs = out_ptr + (split.to(tl.int64) * m + tokens[None, :]) * n + rows[:, None]
    inside = (rows < n)[:, None] & (tokens < m)[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=inside)


def matmul(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Computes x @ (codes * scales[:, None]).T + bias on a GPU (or in Triton's interpreter).

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16.
        codes: int8 [N, padded_k(K)] contiguous, zero beyond K.
        scales: bf16 [N].
        bias: [N] or None.

    Returns:
        [M, N] in x.dtype. From GEMM_MIN_ROWS rows on the codes are decoded once, for cuBLAS.

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
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if m == 0:
        return out
    x = x.to(torch.bfloat16)
    if m < GEMM_MIN_ROWS:
        _launch(x, codes, scales, bias, out)
        return out
    rows = max(1, DECODED_ELEMENTS // k)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        y = F.linear(x, codes[block, :k].to(torch.bfloat16)).to(torch.float32) * scales[block]
        out[:, block] = finished(y, None if bias is None else bias[block], out.dtype)
    return out


def _launch(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, out: Tensor) -> None:
    m, k = x.shape
    n = codes.shape[0]
    config = tile_config(m=m, n=n, steps=triton.cdiv(codes.shape[1], BK), bms=BMS)
    split = config.splits > 1
    target = out
    if split:
        target = torch.empty(config.splits, m, n, dtype=torch.float32, device=x.device)
    int8_matmul_kernel[(triton.cdiv(m, config.bm), triton.cdiv(n, BN), config.splits)](
        x,
        codes,
        scales,
        scales if bias is None else bias,
        target,
        m,
        n,
        k,
        codes.shape[1],
        config.steps_per_split * BK,
        HAS_BIAS=bias is not None and not split,
        EVEN_K=k % BK == 0,
        COMPUTE=compute_dtype(x.device),
        BM=config.bm,
        BN=BN,
        BK=BK,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        **register_options(x.device),
    )
    if split:
        splitk_sum(target, bias, out)
