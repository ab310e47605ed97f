"""Gated activations: act(gate) * up of a product whose first half of columns is the gate."""

from tersor.kernels.gated.ops import gated
from tersor.kernels.gated.reference import ACTIVATIONS

__all__ = ["ACTIVATIONS", "gated"]
