"""Quantizers: a float matrix becomes the planes of a compressed layout, data-free."""

from __future__ import annotations

from tersor.converters.quantize.base import Quantized
from tersor.converters.quantize.bitmap import quantize_bitmap
from tersor.converters.quantize.codebook4 import quantize_codebook4
from tersor.converters.quantize.fp8 import quantize_fp8
from tersor.converters.quantize.int4 import quantize_int4
from tersor.converters.quantize.int6 import quantize_int6
from tersor.converters.quantize.int8 import quantize_int8

__all__ = [
    "Quantized",
    "quantize_bitmap",
    "quantize_codebook4",
    "quantize_fp8",
    "quantize_int4",
    "quantize_int6",
    "quantize_int8",
]
