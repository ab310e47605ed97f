"""Symbols of a few bits in 32-bit words whose slices are contiguous: how weights lie on a GPU."""

from __future__ import annotations

from torch import Tensor


def interleave(symbols: Tensor, bits: int, bw: int) -> Tensor:
    """Packs symbols uint8 [N, K] below 2^bits on a GPU, by one kernel.

    A word has S = 32 / bits symbols. Columns go in blocks of S * bw; in a block, symbol j of word i
    (from its lowest bits) is column j * bw + i.

    Args:
        symbols: contiguous; above 2^bits they spill into their neighbours.
        bits: 1, 2, 4 or 8.
        bw: words of a block, a power of two.

    Returns:
        int32 [N, ceil(K / (S * bw)) * bw], zero beyond K.

    Raises:
        LayoutError: `symbols` have another dtype or are not contiguous, or there is no GPU.
    """
    from tersor.kernels.interleave import triton  # imports triton, which a CPU need not have

    words: Tensor = triton.interleave(symbols, bits, bw)
    return words


__all__ = ["interleave"]
