"""The order-0 entropy of planes: what a code that looks at one symbol at a time can reach."""

from __future__ import annotations

import numpy as np

from tersor.bundle.dtypes import AnyArray
from tersor.bundle.filters import FILTERS
from tersor.bundle.manifest import DTYPES

_FLOAT_SPLIT = FILTERS["float_split"]


class OrderZero:
    """Counts the symbols of a kind of plane, all of them as one distribution.

    Symbols of more than two bytes are too many to count: there it is the sum over their bytes, of
    floats after the split into exponent and mantissa, which is no less than the symbols' own.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        width = DTYPES[dtype]
        parts, alphabet = (1, 1 << (8 * width)) if width <= 2 else (width, 256)
        self._counts = np.zeros((parts, alphabet), np.int64)

    def add(self, block: AnyArray) -> None:
        """Counts a contiguous block of symbols."""
        for row, symbols in enumerate(self._parts(block)):
            self._counts[row] += np.bincount(symbols, minlength=self._counts.shape[1])

    @property
    def bits(self) -> float:
        """Bits for a symbol; 0 before anything was counted."""
        total = int(self._counts[0].sum())
        if total == 0:
            return 0.0
        shares = self._counts[self._counts > 0] / total
        return abs(float((shares * np.log2(shares)).sum()))  # not -0.0, where there is one symbol

    def _parts(self, block: AnyArray) -> tuple[AnyArray, ...]:
        width = DTYPES[self._dtype]
        if width <= 2:
            return (block.reshape(-1).view(f"<u{width}"),)
        if self._dtype in _FLOAT_SPLIT.dtypes:
            return _FLOAT_SPLIT.split(self._dtype, block)
        return tuple(block.reshape(-1).view(np.uint8).reshape(-1, width).T)
