"""Gated activations in plain torch: the definition, and the path of every CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def gated(y: Tensor, activation: str) -> Tensor:
    """act(y[..., : N / 2]) * y[..., N / 2 :] of y [..., N], contiguous, in y.dtype.

    `activation` is one of ACTIVATIONS.
    """
    gate, up = y.chunk(2, -1)
    # Not in place on `gate`: on a strided view that took 20 times as long on 16 rows.
    return ACTIVATIONS[activation](gate).mul_(up)
