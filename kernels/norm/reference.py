"""RMSNorm of a residual stream in plain float32 torch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def added(residual: Tensor, partials: Tensor | None) -> Tensor:
    """The residual [T, H] plus partials [S, T, H] summed over S, rounded to residual's dtype."""
    if partials is None:
        return residual
    return (residual.to(torch.float32) + partials.to(torch.float32).sum(0)).to(residual.dtype)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Computes x / sqrt(mean(x * x) + eps) * gain, rounded once to x.dtype."""
    wide = x.to(torch.float32)
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * scale * gain.to(torch.float32)).to(x.dtype)
