"""Weights of one signed byte with a step per row."""

from tersor.kernels.int8.layout import Int8Layout

__all__ = ["Int8Layout"]
