"""RMSNorm of a residual stream on a CPU: torch's own two kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def add_rms_norm(residual: Tensor, partials: Tensor | None, gain: Tensor, eps: float) -> Tensor:
    """As `ops.add_rms_norm`."""
    if partials is not None:
        residual += _whole(partials)
    return _rms_norm(residual, gain, eps)


def rms_norm_rows(
    residual: Tensor, partials: Tensor | None, rows: Tensor, gain: Tensor, eps: float
) -> Tensor:
    """As `ops.rms_norm_rows`."""
    chosen = residual.index_select(0, rows)  # a copy
    if partials is not None:
        chosen += _whole(partials).index_select(0, rows)
    return _rms_norm(chosen, gain, eps)


def _whole(partials: Tensor) -> Tensor:
    return partials.select(0, 0) if partials.shape[0] == 1 else partials.sum(0)


def _rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    gain = gain if gain.dtype == x.dtype else gain.to(x.dtype)
    return F.rms_norm(x, gain.shape, gain, eps)
