"""Weights of one 8-bit float (e4m3) with a scale per row or per 128 x 128 block."""

from tersor.kernels.fp8.layout import Fp8Layout

__all__ = ["Fp8Layout"]
