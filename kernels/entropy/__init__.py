"""Entropy decoding on a GPU: chunks of the `rans` codec."""

from tersor.kernels.entropy.batch import RansBatch
from tersor.kernels.entropy.chunk import EncodedChunk, RansTables
from tersor.kernels.entropy.ops import rans_decode

__all__ = ["EncodedChunk", "RansBatch", "RansTables", "rans_decode"]
