"""The filters by name; the manifest names one for each plane."""

from __future__ import annotations

from collections.abc import Mapping

from tersor.bundle.filters.base import Filter, check_symbols
from tersor.bundle.filters.floats import Float8Split, FloatSplit, RowExponent
from tersor.bundle.filters.integers import BitPlanes, Nibbles, NoFilter

# Ordered by preference: of two equally small results the earlier filter is kept.
_FILTERS: tuple[Filter, ...] = (
    NoFilter(), FloatSplit(), RowExponent(), Float8Split(), Nibbles(), BitPlanes(),
)  # fmt: skip

FILTERS: Mapping[str, Filter] = {entry.name: entry for entry in _FILTERS}


def filters_for(dtype: str) -> tuple[Filter, ...]:
    """The filters that can split planes of `dtype`, `none` first."""
    return tuple(entry for entry in _FILTERS if dtype in entry.dtypes)


__all__ = ["FILTERS", "Filter", "check_symbols", "filters_for"]
