"""Words decoded to a weight on a GPU, for the products that cuBLAS makes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.gemv.triton import compute_dtype
from tersor.kernels.int4.packing import ScaleCut, block_words
from tersor.kernels.int4.triton_unpack import code_of


@triton.jit
def decode_kernel(
    words_ptr,  # int32 [n, words]
    high_ptr,  # int16 [n, words], read if BITS is 6
    scales_ptr,  # bf16: one a row, one in all, or [scale runs, all_n, PARTS]
    zeros_ptr,  # uint8, as the scales, read if HAS_ZEROS
    out_ptr,  # [n, k]
    n,
    k,
    words,
    all_n,  # rows of the whole weight, of which this launch decodes n
    scale_stride,  # from a row to the next: PARTS, or 0 where all rows share a scale
    BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    PARTS: tl.constexpr,  # scales of a row in a block; 0: one for the whole row
    SCALE_BLOCKS: tl.constexpr,  # blocks that share their scales
    BN: tl.constexpr,
    BW: tl.constexpr,
):
    """out[r, c] = (code[r, c] - zero) * scale, zero = 2 ** (BITS - 1) unless HAS_ZEROS.

    Grid: (n / BN, words / BW).
    """
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    block = tl.program_id(1)
    row_inside = rows < n
    lanes = tl.arange(0, BW)
    at = rows[:, None] * words + (block * BW + lanes)[None, :]
    packed = tl.load(words_ptr + at, mask=row_inside[:, None], other=0)
    high = packed
    if BITS == 6:
        high = tl.load(high_ptr + at, mask=row_inside[:, None], other=0)
    for j in tl.static_range(8):
        scale_at = rows * scale_stride
        if PARTS > 0:
            scale_at += (block // SCALE_BLOCKS).to(tl.int64) * all_n * PARTS + j * PARTS // 8
        scale = tl.load(scales_ptr + scale_at, mask=row_inside, other=0.0).to(tl.float32)
        code = code_of(packed, high, j, BITS).to(tl.float32)
        if HAS_ZEROS:
            zero = tl.load(zeros_ptr + scale_at, mask=row_inside, other=0).to(tl.float32)
            code -= zero[:, None]
        else:
            code -= 2.0 ** (BITS - 1)
        weight = (code * scale[:, None]).to(out_ptr.dtype.element_ty)
        column = (block * 8 + j) * BW + lanes
        inside = row_inside[:, None] & (column < k)[None, :]
        tl.store(out_ptr + rows[:, None] * k + column[None, :], weight, mask=inside)


def decode_words(
    words: Tensor,
    high: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    group: int,
    k: int,
    dtype: torch.dtype,
    start: int,
    stop: int,
) -> Tensor:
    """Rows start..stop (or the end) of a weight: [rows, k] in `dtype`, fp32 or bf16.

    Args:
        words: int32 [N, W] contiguous.
        high: int16 [N, W] if codes have six bits, else None.
        scales: bf16, as `pack_scales` makes them.
        zeros: uint8, as the scales, or None for the middle code.
        group: columns per scale, one that `block_words` takes.
        k: columns of the weight.
        dtype: of the result.
        start: first row.
        stop: row behind the last.

    Raises:
        LayoutError: the operands are on a CPU and the interpreter is off.
    """
    compute_dtype(words.device)
    part = words[start:stop]
    n = part.shape[0]
    bw = block_words(group, k)
    assert bw is not None, "words are only packed for groups that fit blocks"
    cut = None if group >= k else ScaleCut.of(group, bw)

    def rows_from_start(values: Tensor) -> Tensor:
        if values.dim() == 1:
            return values[start:] if values.shape[0] > 1 else values
        return values[:, start:]

    out = torch.empty(n, k, dtype=dtype, device=words.device)
    decode_kernel[(triton.cdiv(n, 16), words.shape[1] // bw)](
        part,
        part if high is None else high[start:stop],
        rows_from_start(scales),
        scales if zeros is None else rows_from_start(zeros),
        out,
        n,
        k,
        words.shape[1],
        words.shape[0],
        row_stride(scales),
        BITS=4 if high is None else 6,
        HAS_ZEROS=zeros is not None,
        PARTS=0 if cut is None else cut.parts,
        SCALE_BLOCKS=1 if cut is None else cut.blocks,
        BN=16,
        BW=bw,
        num_warps=4,
    )
    return out


def row_stride(scales: Tensor) -> int:
    """Elements from the packed scales of a row to those of the next; 0 where all rows share one."""
    if scales.dim() == 1:
        return int(scales.shape[0] > 1)
    return scales.shape[2]
