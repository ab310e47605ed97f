"""Histograms of symbols, in machine code."""

from __future__ import annotations

import numpy as np

from tersor.bundle.codecs.compiled import compiled
from tersor.bundle.dtypes import AnyArray, ByteArray

_U64 = np.uint64


@compiled
def count_symbols(symbols: AnyArray, tables: ByteArray, counts: AnyArray) -> None:
    """Adds to `counts`, int64 [tables, alphabet]; empty `tables` means table 0 for all."""
    if tables.size == 0:
        for index in range(_U64(symbols.size)):
            counts[0, _U64(symbols[index])] += 1
    else:
        for index in range(_U64(symbols.size)):
            counts[_U64(tables[index]), _U64(symbols[index])] += 1


@compiled
def count_rows(symbols: AnyArray, dense: AnyArray, counts: AnyArray) -> None:
    """Adds to `counts`, int64 [rows, n], from symbols [rows, columns] numbered by `dense`."""
    for row in range(_U64(symbols.shape[0])):
        for column in range(_U64(symbols.shape[1])):
            counts[row, _U64(dense[_U64(symbols[row, column])])] += 1


@compiled
def count_columns(
    symbols: AnyArray, dense: AnyArray, row_class: ByteArray, counts: AnyArray
) -> None:
    """Adds to `counts`, int64 [columns, row classes, n], from symbols [rows, columns]."""
    for row in range(_U64(symbols.shape[0])):
        kind = _U64(row_class[row])
        for column in range(_U64(symbols.shape[1])):
            counts[column, kind, _U64(dense[_U64(symbols[row, column])])] += 1
