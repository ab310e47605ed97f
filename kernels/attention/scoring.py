"""How a layer turns queries and keys into weights, apart from the queries and keys themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.checks import check_tensor
from tersor.kernels.errors import LayoutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """One layer's softmax: of cap(scale * q @ k.T) over the keys that a token sees."""

    scale: float  # factor on the scores
    window: int | None = None  # tokens a token sees, itself included; None is unbounded
    soft_cap: float | None = None  # cap(s) = soft_cap * tanh(s / soft_cap); None leaves s alone
    # float32 [num_heads]: one more score per head, which takes its share of the softmax and
    # contributes no value; None is no such score.
    sinks: Tensor | None = None

    def check(self, num_heads: int, device: torch.device) -> None:
        """Raises LayoutError unless the values make sense for `num_heads` heads on `device`."""
        if self.window is not None and self.window < 1:
            raise LayoutError(f"window is {self.window}, expected at least 1 token, or None")
        cap = self.soft_cap
        if cap is not None and not (cap > 0 and math.isfinite(cap)):
            raise LayoutError(f"soft_cap is {cap}, expected a positive finite number, or None")
        if self.sinks is not None:
            check_tensor(
                "sinks", self.sinks, shape=(num_heads,), dtypes=(torch.float32,), device=device
            )
