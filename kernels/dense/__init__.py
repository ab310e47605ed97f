"""Uncompressed weights."""

from tersor.kernels.dense.layout import DenseLayout

__all__ = ["DenseLayout"]
