"""Triton kernel of the residual stream's RMSNorm: one program a row, held in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.gemv.triton import check_device, load_partials

# Columns that a warp holds: 8 floats a lane, so that at batch 1, when one program is all there is,
# every part of a row of 4096 is in flight at once.
WARP_COLUMNS = 256
MAX_WARPS = 16  # 1024 lanes on AMD, the most that a program may have
# Rows that are held whole. Wider ones are read block by block, and a second time for the result: a
# block of 16384 with eight parts spills, and in a loop one of 8192 does.
MAX_BLOCK = 8192
WIDE_BLOCK = 4096


@triton.jit
def load_added(residual_ptr, partials_ptr, offsets, inside, stride, SPLITS: tl.constexpr):
    """The residual at `offsets` with its SPLITS parts added, in the residual's dtype."""
    x = tl.load(residual_ptr + offsets, mask=inside, other=0.0)
    if SPLITS > 0:
        parts = load_partials(partials_ptr + offsets, stride, inside, SPLITS)
        x = (x.to(tl.float32) + parts).to(residual_ptr.dtype.element_ty)
    return x


@triton.jit(do_not_specialize=["tokens"])
def add_rms_norm_kernel(
    residual_ptr,  # [tokens, width]
    partials_ptr,  # [SPLITS, tokens, width]
    rows_ptr,  # int64, one a program, below tokens; read if SELECT
    gain_ptr,  # [width]
    out_ptr,  # [programs, width] in residual_ptr's dtype
    tokens,
    width,
    eps,
    SPLITS: tl.constexpr,  # 0: nothing to add
    SELECT: tl.constexpr,  # programs take rows_ptr's rows, and the residual stays as it is
    BLOCK: tl.constexpr,  # power of two
    WIDE: tl.constexpr,  # width is above BLOCK
):
    """residual[i] += sum over s of partials[s, i]; out[i] = rms_norm(residual[i]) * gain."""
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + program) if SELECT else program
    stride = tokens.to(tl.int64) * width
    lane = tl.arange(0, BLOCK)
    residual_row = residual_ptr + row * width
    partials_row = partials_ptr + row * width
    out_row = out_ptr + program * width
    if WIDE:
        squares = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            column = start + lane
            inside = column < width
            x = load_added(residual_row, partials_row, column, inside, stride, SPLITS)
            if SPLITS > 0 and not SELECT:
                tl.store(residual_row + column, x, mask=inside)
            tl.store(out_row + column, x, mask=inside)  # where the second loop finds it
            squares += x.to(tl.float32) * x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(squares, axis=0) / width + eps)
        tl.debug_barrier()
        for start in range(0, width, BLOCK):
            column = start + lane
            inside = column < width
            x = tl.load(out_row + column, mask=inside, other=0.0).to(tl.float32)
            gain = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
            y = (x * scale * gain).to(out_ptr.dtype.element_ty)
            tl.store(out_row + column, y, mask=inside)
    else:
        inside = lane < width
        gain = tl.load(gain_ptr + lane, mask=inside, other=0.0).to(tl.float32)
        x = load_added(residual_row, partials_row, lane, inside, stride, SPLITS)
        if SPLITS > 0 and not SELECT:
            tl.store(residual_row + lane, x, mask=inside)
        x = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
        y = (x * scale * gain).to(out_ptr.dtype.element_ty)
        tl.store(out_row + lane, y, mask=inside)


def add_rms_norm(residual: Tensor, partials: Tensor | None, gain: Tensor, eps: float) -> Tensor:
    """As `ops.add_rms_norm`, on a GPU (or in Triton's interpreter)."""
    _check(residual, partials, gain)
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    _launch(residual, partials, None, gain, out, eps)
    return out


def rms_norm_rows(
    residual: Tensor, partials: Tensor | None, rows: Tensor, gain: Tensor, eps: float
) -> Tensor:
    """As `ops.rms_norm_rows`, on a GPU (or in Triton's interpreter)."""
    _check(residual, partials, gain)
    check_tensor("rows", rows, shape=(None,), dtypes=(torch.int64,), device=residual.device)
    out = torch.empty(
        rows.shape[0], residual.shape[1], dtype=residual.dtype, device=residual.device
    )
    _launch(residual, partials, rows, gain, out, eps)
    return out


def _check(residual: Tensor, partials: Tensor | None, gain: Tensor) -> None:
    check_device(residual.device)
    check_tensor("residual", residual, shape=(None, None), dtypes=ACTIVATION_DTYPES)
    tokens, width = residual.shape
    device = residual.device
    check_tensor("gain", gain, shape=(width,), device=device)
    if partials is not None:
        shape = (None, tokens, width)
        check_tensor("partials", partials, shape=shape, dtypes=ACTIVATION_DTYPES, device=device)


def _launch(
    residual: Tensor,
    partials: Tensor | None,
    rows: Tensor | None,
    gain: Tensor,
    out: Tensor,
    eps: float,
) -> None:
    if not out.numel():
        return
    width = residual.shape[1]
    block = block_size(width)
    add_rms_norm_kernel[(out.shape[0],)](
        residual,
        residual if partials is None else partials,
        residual if rows is None else rows,
        gain,
        out,
        residual.shape[0],
        width,
        eps,
        SPLITS=0 if partials is None else partials.shape[0],
        SELECT=rows is not None,
        BLOCK=block,
        WIDE=width > block,
        num_warps=warps(block),
    )


def block_size(width: int) -> int:
    """Columns that a program holds at a time."""
    return triton.next_power_of_2(width) if width <= MAX_BLOCK else WIDE_BLOCK


def warps(block: int) -> int:
    """Warps of a program that holds a row of `block` columns: never by how many rows there are."""
    return max(1, min(MAX_WARPS, block // WARP_COLUMNS))
