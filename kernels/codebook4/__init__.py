"""Weights of four bits that index a table of 16 values, with a scale per group."""

from tersor.kernels.codebook4.layout import Codebook4Layout

__all__ = ["Codebook4Layout"]
