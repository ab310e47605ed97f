"""`tersor::gated`: a gated activation in one launch on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.gated import reference

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define("gated(Tensor y, str activation) -> Tensor")
LIBRARY.impl("gated", reference.gated, "CPU")


@torch.library.impl(LIBRARY, "gated", "CUDA")
def _gated_cuda(y: Tensor, activation: str) -> Tensor:
    from tersor.kernels.gated import triton  # imports triton, which a CPU need not have

    rows = y.reshape(1, -1, y.shape[-1])
    return triton.gated_sum(rows, activation, y.dtype).view(*y.shape[:-1], -1)


def _gated_fake(y: Tensor, activation: str) -> Tensor:
    del activation  # the shape does not depend on it
    return y.new_empty(*y.shape[:-1], y.shape[-1] // 2)


torch.library.register_fake("tersor::gated", _gated_fake, lib=LIBRARY)


def gated(y: Tensor, activation: str) -> Tensor:
    """act(y[..., : N / 2]) * y[..., N / 2 :] of y [..., N], contiguous, in y.dtype.

    `activation` is one of ACTIVATIONS.
    """
    if y.device.type == "cpu":  # torch's own operators need none around them
        return reference.gated(y, activation)
    out: Tensor = torch.ops.tersor.gated(y, activation)
    return out
