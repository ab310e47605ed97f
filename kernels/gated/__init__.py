"""Gated activations: act(gate) * up of a product whose first half of columns is the gate."""

from tersor.kernels.gated.reference import ACTIVATIONS, gated

__all__ = ["ACTIVATIONS", "gated"]
