"""Symbols outside the static table: coded as another symbol, and put right after decoding."""

from __future__ import annotations

import numpy as np

from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError


def take_out(
    symbols: AnyArray, tables: ByteArray, weights: AnyArray, fill: AnyArray
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Replaces what the tables lack by a symbol that they have.

    Args:
        symbols: uint8 or uint16 [n].
        tables: uint8 [n]; empty where all use table 0.
        weights: [tables, alphabet], 0 where a table lacks the symbol.
        fill: [tables], the replacement.

    Returns:
        The symbols to code (the array itself where nothing is lacking), and of the patches their
        positions and values.
    """
    lacking = weights == 0
    if not tables.size:
        missing = lacking[0][symbols]
    else:
        missing = lacking.reshape(-1)[tables * np.intp(weights.shape[1]) + symbols]
    positions = np.flatnonzero(missing)
    if positions.size == 0:
        return symbols, positions, symbols[:0]
    values = symbols[positions]
    coded = symbols.copy()
    coded[positions] = fill[tables[positions]] if tables.size else fill[0]
    return coded, positions, values


def apply_patches(symbols: AnyArray, positions: AnyArray, values: AnyArray) -> None:
    """Puts the patches into decoded symbols.

    Raises:
        BundleCorruptError: positions do not ascend, or lie outside.
    """
    if positions.size == 0:
        return
    if positions[-1] >= symbols.size or (np.diff(positions.astype(np.int64)) <= 0).any():
        raise BundleCorruptError(
            f"the patches of a chunk of {symbols.size} symbols do not ascend within it"
        )
    symbols[positions] = values
