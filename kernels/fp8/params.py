"""Parameters of the `fp8` layout, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tersor.kernels.errors import LayoutError
from tersor.kernels.fp8.reference import BLOCK
from tersor.kernels.layout import Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Params:
    """What a weight's parameters say."""

    blocks: bool  # a scale per BLOCK x BLOCK weights instead of one per row
    fp8_activations: bool

    @classmethod
    def parse(cls, params: Params) -> Self:
        """Checks the parameters; raises LayoutError."""
        if params.keys() - {"activations"} != {"block"}:
            raise LayoutError(
                "layout `fp8` takes the parameter `block` and may take `activations`, got "
                f"{sorted(params)}"
            )
        block = params["block"]
        if isinstance(block, bool) or not isinstance(block, int) or block not in (0, BLOCK):
            raise LayoutError(
                f"`block` of layout `fp8` must be 0 (a scale per row) or {BLOCK}, got {block!r}"
            )
        activations = params.get("activations", "fp8")
        if activations != "fp8":
            raise LayoutError(
                f"`activations` of layout `fp8` must be 'fp8' or absent, got {activations!r}"
            )
        return cls(blocks=block == BLOCK, fp8_activations="activations" in params)

    def scales(self, n: int, k: int) -> tuple[int, ...]:
        """Shape of the scales of a weight [n, k]."""
        return (-(-n // BLOCK), -(-k // BLOCK)) if self.blocks else (n,)
