"""Attention over keys and values that lie in pages."""

from tersor.kernels.attention.plan import AttentionPlan
from tersor.kernels.attention.reference import paged_attention_reference
from tersor.kernels.attention.spans import Span

__all__ = ["AttentionPlan", "Span", "paged_attention_reference"]
