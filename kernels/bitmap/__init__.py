"""Sparse weights: a bit per weight, and the values of those that are not zero."""

from tersor.kernels.bitmap.layout import BitmapLayout

__all__ = ["BitmapLayout"]
