"""From counts to a static table: which symbols it holds, and frequencies that sum to 2^precision.

A symbol outside the table is a *patch*: the coder writes the table's most frequent symbol in its
place, and position and value stand beside the coded block. A table entry takes bytes and a slot
from every other symbol, so rare symbols are cheaper as patches.
"""

from __future__ import annotations

import numpy as np

from tersor.bundle.dtypes import AnyArray

POSITION_BYTES = 4
_FREQUENCY_BYTES = 2
# Costs are compared as integers, so that the choice does not hang on the last bit of a logarithm.
_SCALE = 1 << 12


def table_of(counts: AnyArray, precision: int, symbol_bytes: int) -> tuple[AnyArray, AnyArray]:
    """Symbols and frequencies of the table that codes `counts` smallest, about.

    Args:
        counts: int64 [alphabet]; may be all zero.
        precision: the frequencies sum to 2^precision.
        symbol_bytes: of a symbol in table and patches.

    Returns:
        Ascending symbols int64 [n], n >= 1, and their frequencies int64 [n], each at least 1.
    """
    kept = kept_symbols(counts, precision, symbol_bytes)
    return kept, normalised(np.maximum(counts[kept], 1), precision)


def kept_symbols(counts: AnyArray, precision: int, symbol_bytes: int) -> AnyArray:
    """The symbols that are worth an entry of a table of 2^precision slots, ascending, at least one.

    `counts`: int64 [alphabet]; may be all zero.
    """
    present = np.flatnonzero(counts)
    if present.size == 0:
        return np.zeros(1, np.int64)
    kept = present[counts[present] >= _patch_limit(int(counts.sum()), precision, symbol_bytes)]
    if kept.size == 0 or kept.size > 1 << (precision - 1):
        order = np.argsort(-counts[present], kind="stable")
        kept = np.sort(present[order[: 1 if kept.size == 0 else 1 << (precision - 1)]])
    result: AnyArray = kept
    return result


def _patch_limit(total: int, precision: int, symbol_bytes: int) -> float:
    """Occurrences from which a symbol belongs in the table."""
    # What the slot costs all others: n log2(1 / (1 - 2^-precision)) bits.
    squeeze = 1.443 * total / (1 << precision)
    entry = 8 * (symbol_bytes + _FREQUENCY_BYTES) + squeeze
    return entry / (patch_bits(symbol_bytes) - precision)


def patch_bits(symbol_bytes: int) -> int:
    """Bits that one patch takes, with two for the symbol in its place."""
    return 8 * (POSITION_BYTES + symbol_bytes) + 2


def normalised(counts: AnyArray, precision: int) -> AnyArray:
    """Frequencies at least 1, proportional to `counts` (each at least 1), of sum 2^precision."""
    size = 1 << precision
    total = int(counts.sum())
    frequencies: AnyArray = np.maximum(1, (counts * size + total // 2) // total)
    missing = size - int(frequencies.sum())
    while missing:
        # The symbols for which one slot more, or one less, matters least or most. A few at a time.
        step = 1 if missing > 0 else -1
        movable = frequencies + step >= 1
        change = np.log2(np.maximum(frequencies + step, 1) / frequencies)
        gain = np.where(movable, np.rint(counts * change * _SCALE), -(1 << 62)).astype(np.int64)
        take = min(abs(missing), max(1, int(movable.sum()) // 8))
        best = np.argsort(-gain, kind="stable")[:take]
        frequencies[best] += step
        missing -= step * take
    return frequencies


def bits_of(frequencies: AnyArray, precision: int) -> AnyArray:
    """Bits of each symbol, float64: precision - log2(frequency)."""
    return precision - np.log2(frequencies.astype(np.float64))
