"""Triton kernel of the residual stream's RMSNorm: one program a row, held in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import ACTIVATION_DTYPES, check_tensor
from tersor.kernels.errors import LayoutError
from tersor.kernels.gemv.triton import check_device, load_partials

# Columns that a warp holds: 8 floats a lane, so that at batch 1, when one program is all there is,
# every part of a row of 4096 is in flight at once.
WARP_COLUMNS = 256
MAX_WARPS = 16  # 1024 lanes on AMD, the most that a program may have
MAX_WIDTH = 32768


@triton.jit(do_not_specialize=["tokens"])
def add_rms_norm_kernel(
    residual_ptr,  # [tokens, width]
    partials_ptr,  # [SPLITS, tokens, width]
    rows_ptr,  # int64, one a program, below tokens; read if SELECT
    gain_ptr,  # [width]
    out_ptr,  # [programs, width]
    tokens,
    width,
    eps,
    SPLITS: tl.constexpr,  # 0: nothing to add
    SELECT: tl.constexpr,  # programs take rows_ptr's rows, and the residual stays as it is
    BLOCK: tl.constexpr,  # power of two >= width
):
    """residual[i] += sum over s of partials[s, i]; out[i] = rms_norm(residual[i]) * gain."""
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + program) if SELECT else program
    column = tl.arange(0, BLOCK)
    inside = column < width
    offsets = row * width + column
    x = tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if SPLITS > 0:
        stride = tokens.to(tl.int64) * width
        x += load_partials(partials_ptr + offsets, stride, inside, SPLITS)
        rounded = x.to(residual_ptr.dtype.element_ty)
        if not SELECT:
            tl.store(residual_ptr + offsets, rounded, mask=inside)
        x = rounded.to(tl.float32)
    mean = tl.sum(x * x, axis=0) / width
    y = x * tl.rsqrt(mean + eps) * gain
    out_ptrs = out_ptr + program * width + column
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=inside)


def add_rms_norm(residual: Tensor, partials: Tensor | None, gain: Tensor, eps: float) -> Tensor:
    """As `ops.add_rms_norm`, on a GPU (or in Triton's interpreter)."""
    _check(residual, partials, gain)
    out = torch.empty_like(residual)
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
    if width > MAX_WIDTH:
        raise LayoutError(f"`residual` has rows of {width}, expected at most {MAX_WIDTH}")
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
    block = triton.next_power_of_2(width)
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
        num_warps=warps(block),
    )


def warps(block: int) -> int:
    """Warps of a program that holds a row of `block` columns: never by how many rows there are."""
    return min(MAX_WARPS, max(1, block // WARP_COLUMNS))
