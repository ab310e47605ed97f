"""Plane dtypes as numpy sees them, and how a plane is cut into rows and chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.bundle.errors import BundleFormatError
from tersor.bundle.manifest import DTYPES, Plane

ByteArray = NDArray[np.uint8]
AnyArray = NDArray[Any]  # the element type is the plane's dtype, known only at run time

# Little-endian always: the digest of a plane is over these bytes, on every machine.
_NUMPY: Mapping[str, str] = {
    "bool": "|b1", "u4": "|u1", "u8": "|u1", "i8": "|i1", "f8_e4m3": "|u1", "f8_e5m2": "|u1",
    "u16": "<u2", "i16": "<i2", "f16": "<f2", "bf16": "<u2",
    "u32": "<u4", "i32": "<i4", "f32": "<f4",
    "u64": "<u8", "i64": "<i8", "f64": "<f8",
}  # fmt: skip

# Largest symbol of the dtypes that do not use their whole byte.
SYMBOL_LIMITS: Mapping[str, int] = {"bool": 1, "u4": 15}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a plane in memory: bf16 is uint16, f8_* and u4 are uint8.

    Raises:
        BundleFormatError: the name is not a plane dtype.
    """
    if name not in _NUMPY:
        raise BundleFormatError(f"unknown dtype {name!r}; expected one of {', '.join(DTYPES)}")
    return np.dtype(_NUMPY[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How an array of `rows` x `row_symbols` is cut into chunks of whole rows."""

    rows: int
    row_symbols: int
    symbol_bytes: int
    rows_per_chunk: int

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: str, rows_per_chunk: int) -> Geometry:
        """Geometry of a plane; a scalar is one row of one symbol."""
        rows = shape[0] if shape else 1
        return cls(
            rows=rows,
            row_symbols=math.prod(shape[1:]),
            symbol_bytes=DTYPES[dtype],
            rows_per_chunk=rows_per_chunk,
        )

    @classmethod
    def of_plane(cls, plane: Plane) -> Geometry:
        """Geometry of a plane of a manifest."""
        return cls.of(plane.shape, plane.dtype, plane.rows_per_chunk)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in memory."""
        return self.row_symbols * self.symbol_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes in memory of every block of rows but the last."""
        return min(self.rows, self.rows_per_chunk) * self.row_bytes

    @property
    def num_chunks(self) -> int:
        """Chunks of each stream; a plane without bytes has none."""
        if self.row_bytes == 0:
            return 0
        return -(-self.rows // self.rows_per_chunk)

    def row_range(self, chunk: int) -> tuple[int, int]:
        """First row of a chunk, and the row after its last."""
        first = chunk * self.rows_per_chunk
        return first, min(first + self.rows_per_chunk, self.rows)

    def block_rows(self, chunk: int) -> int:
        """Rows of a chunk."""
        first, last = self.row_range(chunk)
        return last - first

    def symbols(self, chunk: int) -> int:
        """Symbols in a chunk's rows."""
        return self.block_rows(chunk) * self.row_symbols


def rows_per_chunk(shape: tuple[int, ...], dtype: str, target_bytes: int) -> int:
    """Rows that make up about `target_bytes`: at least one, and no more than there are."""
    geometry = Geometry.of(shape, dtype, 1)
    if geometry.row_bytes == 0:
        return 1
    return max(1, min(target_bytes // geometry.row_bytes, geometry.rows))
