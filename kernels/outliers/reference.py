"""The definition of sparse outliers, in float32: values added to a weight at given positions."""

from __future__ import annotations

import torch
from torch import Tensor


def scatter(positions: Tensor, values: Tensor, n: int, k: int) -> Tensor:
    """float32 [n, k] with `values` at the flat row-major `positions` (row * k + column), else 0."""
    dense = torch.zeros(n * k, device=values.device)
    dense[positions.to(torch.int64)] = values.to(torch.float32)
    return dense.view(n, k)
