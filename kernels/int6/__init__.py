"""Weights of six bits with a step per row or tensor."""

from tersor.kernels.int6.layout import Int6Layout

__all__ = ["Int6Layout"]
