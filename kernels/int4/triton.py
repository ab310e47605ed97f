"""Launches the kernels of words: activations in bf16, weights of four or six bits (w4a16, w6a16).

Weights lie in words as drawn in packing.py: nibble j of BW neighbouring words is a contiguous slice
of K, and every word is loaded exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.errors import LayoutError
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finished_like
from tersor.kernels.gemv.launch import Product, decoded_product
from tersor.kernels.gemv.triton import has_inline_asm
from tersor.kernels.int4.packing import ScaleCut, block_words, kernel_name
from tersor.kernels.int4.triton_decode import decode_words, row_stride
from tersor.kernels.int4.triton_groups import group_matmul_kernel
from tersor.kernels.int4.triton_rows import row_matmul_kernel
from tersor.kernels.outliers.rows import add_rows
from tersor.kernels.outliers.slices import MAX_COLUMNS, SLICE_ROWS, SlicedOutliers, token_columns


def matmul(
    x: Tensor,
    words: Tensor,
    high: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    outliers: SlicedOutliers | None,
    group: int,
    bias: Tensor | None,
    finish: Finish = Finish.SUM,
) -> Tensor:
    """Computes x @ weight.T + bias on a GPU (or in Triton's interpreter).

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16.
        words: int32 [N, W] contiguous, as `pack_words` makes them.
        high: int16 [N, W], the high bits of codes of six bits, or None for four.
        scales: bf16, as `pack_scales` makes them.
        zeros: uint8, as the scales, or None for the middle code.
        outliers: what is added to the weight, or None.
        group: columns per scale, one that `block_words` takes; at least K for codes of six bits.
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
    _check_weight(words, high, scales, zeros, outliers, group, k, x.device)
    n = words.shape[0]
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=x.device)
    if m == 0:
        return finished_like(x, finish, n, splits=1)
    if m < GEMM_MIN_ROWS:
        made = product(x, words, high, scales, zeros, outliers, group)
        return made.launch(x, bias, finish)

    def decode(start: int, stop: int) -> Tensor:
        dense = decode_words(words, high, scales, zeros, group, k, torch.bfloat16, start, stop)
        if outliers is None:
            return dense
        return add_rows(dense, outliers.lookup(torch.arange(start, stop, device=x.device)))

    return decoded_product(x, n, bias, finish, decode)


def tile_heights(parts: int) -> tuple[int, ...]:
    """BM by scales of a row in a block: with one per slice, 16 rows of x would spill on sm_80."""
    return (8,) if parts == 8 else (8, 16)


def product(
    x: Tensor,
    words: Tensor,
    high: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    outliers: SlicedOutliers | None,
    group: int,
) -> Product:
    """The kernel bound to a weight, for x [M, K], fp32 or bf16."""
    n, width = words.shape
    k = x.shape[1]
    bw = block_words(group, k)
    assert bw is not None, "the weight was checked"
    columns = None if outliers is None else token_columns(x.to(torch.bfloat16))
    sparse = (
        (words, words, words)
        if outliers is None or columns is None
        else (outliers.entries, outliers.starts, columns)
    )
    columns_width = 1 if columns is None else columns.shape[1]
    constants: Mapping[str, Any] = {
        "BW": bw,
        "HAS_ZEROS": zeros is not None,
        "OUTLIERS": outliers is not None,
        "EVEN_K": k % (8 * bw) == 0,
        "USE_ASM": has_inline_asm(words.device),
    }
    scaling = (scales, scales if zeros is None else zeros)
    if group >= k:
        return Product(
            kernel=row_matmul_kernel,
            name=kernel_name(group, k, zeros=zeros is not None, bits=4 if high is None else 6),
            n=n,
            k=k,
            steps=width // bw,
            bms=tile_heights(1),
            weights=(words, words if high is None else high, *scaling, *sparse),
            sizes=(width, row_stride(scales), columns_width),
            constants={**constants, "BITS": 4 if high is None else 6},
        )
    cut = ScaleCut.of(group, bw)
    return Product(
        kernel=group_matmul_kernel,
        name=kernel_name(group, k, zeros=zeros is not None),
        n=n,
        k=k,
        steps=width // bw,
        bms=tile_heights(cut.parts),
        weights=(words, *scaling, *sparse),
        sizes=(width, columns_width),
        constants={**constants, "PARTS": cut.parts, "SCALE_BLOCKS": cut.blocks},
    )


def _check_weight(
    words: Tensor,
    high: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    outliers: SlicedOutliers | None,
    group: int,
    k: int,
    device: torch.device,
) -> None:
    bw = block_words(group, k)
    if bw is None or (high is not None and group < k):
        allowed = "at least" if high is not None else "a multiple of 16 or at least"
        raise LayoutError(f"`group` is {group}, expected {allowed} K = {k}")
    width = -(-k // (8 * bw)) * bw
    check_tensor("words", words, shape=(None, width), dtypes=(torch.int32,), device=device)
    n = words.shape[0]
    if high is not None:
        check_tensor("high", high, shape=(n, width), dtypes=(torch.int16,), device=device)
    shape: tuple[int, ...] = (1 if scales.shape == (1,) else n,)
    if group < k:
        cut = ScaleCut.of(group, bw)
        shape = (cut.count(k), n, cut.parts)
    check_tensor("scales", scales, shape=shape, dtypes=(torch.bfloat16,), device=device)
    if zeros is not None:
        check_tensor("zeros", zeros, shape=shape, dtypes=(torch.uint8,), device=device)
    if outliers is None:
        return
    if k > MAX_COLUMNS:
        raise LayoutError(f"outliers in slices need K <= {MAX_COLUMNS}, got {k}")
    check_tensor("entries", outliers.entries, shape=(None,), dtypes=(torch.int32,), device=device)
    slices = -(-n // SLICE_ROWS) + 1
    check_tensor("starts", outliers.starts, shape=(slices,), dtypes=(torch.int32,), device=device)
