"""Queries, keys and values between the qkv product and attention: norms, rotation, KV store."""

from tersor.kernels.rotary.heads import Heads, Rotation, SplitHeads
from tersor.kernels.rotary.ops import rotate_store

__all__ = ["Heads", "Rotation", "SplitHeads", "rotate_store"]
