"""The static tables of a rANS stream: one, or one for each class of rows and columns."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np

from tersor.bundle.codecs.entropy.frequencies import bits_of, patch_bits, table_of
from tersor.bundle.codecs.entropy.layout import Sections, padded, symbol_kind
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError

# 4096 slots lie in the first-level cache. For 256 symbols the rounding costs below 0.2 %.
PRECISION = 12
# The tables of four classes lie there with 2048 slots, as long as there are few symbols (650 MB/s
# instead of 585 for 0.05 % more bits).
CLASSED_PRECISION = 11
_FEW_SYMBOLS = 64
# Wide alphabets need more slots than symbols.
WIDE_PRECISION = 14
_PRECISIONS = range(8, 16)
MAX_TABLES = 16
MAX_COLUMNS = 1 << 20

_HEAD = struct.Struct("<BBBBI")
_COUNT = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class RansModel:
    """Tables by `row class * column_classes + column class`."""

    symbol_bytes: int
    precision: int
    row_classes: int
    column_classes: int
    columns: ByteArray  # class of each column; empty where there is one class
    symbols: tuple[AnyArray, ...]  # of each table, ascending
    frequencies: tuple[AnyArray, ...]  # of each table, of sum 2^precision

    @classmethod
    def of_counts(
        cls,
        counts: AnyArray,
        symbol_bytes: int,
        *,
        row_classes: int,
        columns: ByteArray,
    ) -> Self:
        """The tables for `counts`, int64 [row classes * column classes, alphabet].

        `columns` is the class of each column; empty where there is one column class.
        """
        precision = _precision(counts, symbol_bytes)
        tables = [table_of(row, precision, symbol_bytes) for row in counts]
        return cls(
            symbol_bytes=symbol_bytes,
            precision=precision,
            row_classes=row_classes,
            column_classes=len(tables) // row_classes,
            columns=columns,
            symbols=tuple(symbols for symbols, _ in tables),
            frequencies=tuple(frequencies for _, frequencies in tables),
        )

    @property
    def num_tables(self) -> int:
        """Row classes times column classes."""
        return self.row_classes * self.column_classes

    @property
    def alphabet(self) -> int:
        """Symbols there can be."""
        return 1 << (8 * self.symbol_bytes)

    def pack(self) -> bytes:
        """The model's bytes, a multiple of four."""
        parts = [
            _HEAD.pack(
                self.symbol_bytes,
                self.precision,
                self.row_classes,
                self.column_classes,
                self.columns.size,
            ),
            padded(pack_classes(self.columns, self.column_classes)),
        ]
        for symbols, frequencies in zip(self.symbols, self.frequencies, strict=True):
            parts += [
                _COUNT.pack(symbols.size),
                padded(symbols.astype(f"<u{self.symbol_bytes}").tobytes()),
                padded(frequencies.astype("<u2").tobytes()),
            ]
        return b"".join(parts)

    @classmethod
    def unpack(cls, data: ByteArray) -> Self:
        """Reads and checks a model.

        Raises:
            BundleCorruptError: it is not one.
        """
        sections = Sections(data, "a rANS model")
        symbol_bytes, precision, rows, columns, width = _HEAD.unpack(
            sections.take(_HEAD.size).tobytes()
        )
        if (
            symbol_bytes not in {1, 2}
            or precision not in _PRECISIONS
            or not 1 <= rows * columns <= MAX_TABLES
            or (columns > 1) != (width > 0)
            or width > MAX_COLUMNS
        ):
            raise BundleCorruptError(
                f"a rANS model has symbols of {symbol_bytes} bytes, precision {precision}, "
                f"{rows} row and {columns} column classes over {width} columns"
            )
        classes = unpack_classes(sections, width, columns)
        tables = [_table(sections, symbol_bytes, precision) for _ in range(rows * columns)]
        sections.finish()
        return cls(
            symbol_bytes=symbol_bytes,
            precision=precision,
            row_classes=rows,
            column_classes=columns,
            columns=classes,
            symbols=tuple(symbols for symbols, _ in tables),
            frequencies=tuple(frequencies for _, frequencies in tables),
        )

    def codes(self) -> AnyArray:
        """For encoding: uint32 [tables, alphabet], frequency << 16 | first slot; 0: not there."""
        codes = np.zeros((self.num_tables, self.alphabet), np.uint32)
        for row, symbols, frequencies in zip(codes, self.symbols, self.frequencies, strict=True):
            starts = np.cumsum(frequencies) - frequencies
            row[symbols] = (frequencies << 16) | starts
        return codes

    def slots(self) -> tuple[AnyArray, AnyArray]:
        """For decoding: uint32 codes and the symbols, each [tables << precision], by slot."""
        from tersor.bundle.codecs.entropy.rans_compiled import fill_slots

        size = 1 << self.precision
        codes = np.empty((self.num_tables, size), np.uint32)
        values = np.empty((self.num_tables, size), symbol_kind(self.symbol_bytes))
        for table in range(self.num_tables):
            fill_slots(self.symbols[table], self.frequencies[table], codes[table], values[table])
        return codes.reshape(-1), values.reshape(-1)

    def has(self) -> AnyArray:
        """Whether a table has a symbol: bool [tables, alphabet]."""
        present = np.zeros((self.num_tables, self.alphabet), np.bool_)
        for row, symbols in zip(present, self.symbols, strict=True):
            row[symbols] = True
        return present

    def bits(self) -> AnyArray:
        """Bits of each symbol in each table, float64 [tables, alphabet], patches included."""
        bits = np.full(
            (self.num_tables, self.alphabet), float(patch_bits(self.symbol_bytes)), np.float64
        )
        for row, symbols, frequencies in zip(bits, self.symbols, self.frequencies, strict=True):
            row[symbols] = bits_of(frequencies, self.precision)
        return bits


def _precision(counts: AnyArray, symbol_bytes: int) -> int:
    if symbol_bytes > 1:
        return WIDE_PRECISION
    few = int((counts.sum(axis=0) > 0).sum()) <= _FEW_SYMBOLS
    return CLASSED_PRECISION if few and counts.shape[0] > 1 else PRECISION


def _table(sections: Sections, symbol_bytes: int, precision: int) -> tuple[AnyArray, AnyArray]:
    (count,) = _COUNT.unpack(sections.take(_COUNT.size).tobytes())
    if not 1 <= count <= 1 << precision:
        raise BundleCorruptError(
            f"a rANS table has {count} symbols; expected 1 to {1 << precision}"
        )
    symbols = sections.array(f"<u{symbol_bytes}", count).astype(np.int64)
    frequencies = sections.array("<u2", count).astype(np.int64)
    if (np.diff(symbols) <= 0).any():
        raise BundleCorruptError("the symbols of a rANS table do not ascend")
    if frequencies.min() < 1 or frequencies.sum() != 1 << precision:
        raise BundleCorruptError(
            f"the frequencies of a rANS table sum to {int(frequencies.sum())} with a least of "
            f"{int(frequencies.min())}; expected {1 << precision}, and each at least 1"
        )
    return symbols, frequencies


def table_parts(
    model: RansModel, row_class: ByteArray, row_symbols: int
) -> tuple[ByteArray, ByteArray, int]:
    """A symbol's table is the sum of its row's part and its column's: both, and a row's length."""
    columns = model.columns if model.columns.size else np.zeros(row_symbols, np.uint8)
    return row_class * np.uint8(model.column_classes), columns, row_symbols


def class_bits(classes: int) -> int:
    """Bits that store one class: 0, 1, 2 or 4, so that none straddles a byte."""
    return 0 if classes == 1 else 1 if classes == 2 else 2 if classes <= 4 else 4


def class_bytes(count: int, classes: int) -> int:
    """Bytes that store `count` classes, before padding."""
    return (count * class_bits(classes) + 7) // 8


def pack_classes(values: ByteArray, classes: int) -> bytes:
    """Classes in as few bits as hold them, the earlier in the lower bits of a byte."""
    bits = class_bits(classes)
    if bits == 0:
        return b""
    each = 8 // bits
    filled = np.zeros(-(-values.size // each) * each, np.uint8)
    filled[: values.size] = values
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    packed: ByteArray = np.bitwise_or.reduce(filled.reshape(-1, each) << shifts, axis=1)
    return packed.astype(np.uint8).tobytes()


def unpack_classes(sections: Sections, count: int, classes: int) -> ByteArray:
    """The inverse of `pack_classes`, then padding.

    Raises:
        BundleCorruptError: a class is out of range, or an unused bit is set.
    """
    bits = class_bits(classes)
    if bits == 0:
        return np.zeros(count, np.uint8) if count else np.empty(0, np.uint8)
    packed = sections.take(class_bytes(count, classes))
    sections.pad()
    each = 8 // bits
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    values = ((packed[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)
    if values[count:].any() or values.max(initial=0) >= classes:
        raise BundleCorruptError(
            f"a class of a rANS chunk is {int(values.max(initial=0))}; expected below {classes}, "
            "and unused bits 0"
        )
    return values[:count].copy()
