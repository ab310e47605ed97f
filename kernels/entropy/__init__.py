"""Entropy decoding on a GPU: chunks of the `rans` codec."""

from tersor.kernels.entropy.batch import RansBatch
from tersor.kernels.entropy.chunk import EncodedChunk, RansTables
from tersor.kernels.entropy.ops import rans_decode, rans_decode_into
from tersor.kernels.entropy.parts import decode_parts

__all__ = [
    "EncodedChunk",
    "RansBatch",
    "RansTables",
    "decode_parts",
    "rans_decode",
    "rans_decode_into",
]
