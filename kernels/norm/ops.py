"""`tersor::add_rms_norm` and `tersor::rms_norm_rows`: one launch each on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.norm import cpu

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "add_rms_norm(Tensor(a!) residual, Tensor? partials, Tensor gain, float eps) -> Tensor"
)
LIBRARY.define(
    "rms_norm_rows(Tensor residual, Tensor? partials, Tensor rows, Tensor gain, float eps)"
    " -> Tensor"
)
LIBRARY.impl("add_rms_norm", cpu.add_rms_norm, "CPU")
LIBRARY.impl("rms_norm_rows", cpu.rms_norm_rows, "CPU")


@torch.library.impl(LIBRARY, "add_rms_norm", "CUDA")
def _add_rms_norm_cuda(
    residual: Tensor, partials: Tensor | None, gain: Tensor, eps: float
) -> Tensor:
    from tersor.kernels.norm import triton  # imports triton, which a CPU need not have

    return triton.add_rms_norm(residual, partials, gain, eps)


@torch.library.impl(LIBRARY, "rms_norm_rows", "CUDA")
def _rms_norm_rows_cuda(
    residual: Tensor, partials: Tensor | None, rows: Tensor, gain: Tensor, eps: float
) -> Tensor:
    from tersor.kernels.norm import triton

    return triton.rms_norm_rows(residual, partials, rows, gain, eps)


def _add_rms_norm_fake(
    residual: Tensor, partials: Tensor | None, gain: Tensor, eps: float
) -> Tensor:
    del partials, gain, eps  # the shape does not depend on them
    return torch.empty_like(residual)


def _rms_norm_rows_fake(
    residual: Tensor, partials: Tensor | None, rows: Tensor, gain: Tensor, eps: float
) -> Tensor:
    del partials, gain, eps
    return residual.new_empty(rows.shape[0], residual.shape[1])


torch.library.register_fake("tersor::add_rms_norm", _add_rms_norm_fake, lib=LIBRARY)
torch.library.register_fake("tersor::rms_norm_rows", _rms_norm_rows_fake, lib=LIBRARY)


def add_rms_norm(residual: Tensor, partials: Tensor | None, gain: Tensor, eps: float) -> Tensor:
    """Adds `partials` to `residual` in place, and returns its RMS norm times `gain`.

    Sums and norm are float32; the residual is rounded to its dtype once, and the norm is that of
    the rounded numbers.

    Args:
        residual: [T, H] contiguous, fp32 or bf16; changed.
        partials: [S, T, H] contiguous, fp32 or bf16, as `Layout.partials` returns; None for none.
        gain: [H].
        eps: added to the mean square.

    Returns:
        [T, H] in residual's dtype.

    Raises:
        LayoutError: on a GPU, an operand has another shape, dtype or device.
    """
    if residual.device.type == "cpu":  # torch's own operators need none around them
        return cpu.add_rms_norm(residual, partials, gain, eps)
    y: Tensor = torch.ops.tersor.add_rms_norm(residual, partials, gain, eps)
    return y


def rms_norm_rows(
    residual: Tensor, partials: Tensor | None, rows: Tensor, gain: Tensor, eps: float
) -> Tensor:
    """`add_rms_norm` of some rows, which changes nothing.

    Args:
        residual: [T, H], as in `add_rms_norm`, as are partials, gain and eps.
        partials: [S, T, H] or None.
        rows: int64 [R], below T.
        gain: [H].
        eps: added to the mean square.

    Returns:
        [R, H] in residual's dtype.

    Raises:
        LayoutError: on a GPU, an operand has another shape, dtype or device.
    """
    if residual.device.type == "cpu":
        return cpu.rms_norm_rows(residual, partials, rows, gain, eps)
    y: Tensor = torch.ops.tersor.rms_norm_rows(residual, partials, rows, gain, eps)
    return y
