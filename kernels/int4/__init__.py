"""Weights of four bits with a scale per group."""

from tersor.kernels.int4.layout import Int4Layout

__all__ = ["Int4Layout"]
