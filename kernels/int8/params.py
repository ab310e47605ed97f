"""Parameters of the `int8` layout, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tersor.kernels.errors import LayoutError
from tersor.kernels.int8.w8a8.reference import check_columns
from tersor.kernels.layout import Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Params:
    """What a weight's parameters say; none given is a step per row and 16-bit activations."""

    step_per_tensor: bool
    int8_activations: bool

    @classmethod
    def parse(cls, params: Params, k: int) -> Self:
        """Checks the parameters of a weight of k columns; raises LayoutError."""
        allowed = {"step": "tensor", "activations": "int8"}
        if unknown := sorted(params.keys() - allowed):
            raise LayoutError(
                f"layout `int8` takes the parameters `step` and `activations`, got {unknown}"
            )
        for name, value in params.items():
            if value != allowed[name]:
                raise LayoutError(
                    f"`{name}` of layout `int8` must be {allowed[name]!r} or absent, got {value!r}"
                )
        if "activations" in params:
            check_columns(k)
        return cls(step_per_tensor="step" in params, int8_activations="activations" in params)

    def scales(self, n: int) -> int:
        """How many scales a weight of n rows has."""
        return 1 if self.step_per_tensor else n
