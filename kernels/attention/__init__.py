"""Attention over keys and values that lie in pages."""

from tersor.kernels.attention.plan import AttentionPlan
from tersor.kernels.attention.reference import paged_attention_reference
from tersor.kernels.attention.spans import Span
from tersor.kernels.rotary.quantize import SCALE_BYTES, dequantize_kv, quantize_kv

__all__ = [
    "SCALE_BYTES",
    "AttentionPlan",
    "Span",
    "dequantize_kv",
    "paged_attention_reference",
    "quantize_kv",
]
