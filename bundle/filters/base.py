"""The contract of a filter: how the symbols of a plane become byte streams, each with its codec.

A filter works on one block of rows, without looking at its neighbours, so that every chunk decodes
alone. It is exact: `join(split(block)) == block`, bit for bit, NaN payloads and signed zeros
included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tersor.bundle.codecs.base import StreamShape
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError

# Temporaries of this many symbols stay in the second-level cache (measured: nibbles of 64 Ki join
# at 5.4 GB/s, of 16 Ki at 4.1 for the calls' overhead).
TILE = 1 << 16


class Filter(ABC):
    """Splits a block of symbols [rows, row symbols] into byte streams and joins it again.

    Stateless.
    """

    name: ClassVar[str]
    dtypes: ClassVar[frozenset[str]]
    # The only stream is the block's memory itself: a codec may decode straight into the output.
    identity: ClassVar[bool] = False

    @abstractmethod
    def stream_names(self, dtype: str) -> tuple[str, ...]:
        """Names of the streams, in order."""

    @abstractmethod
    def stream_bytes(self, dtype: str, rows: int, row_symbols: int) -> tuple[int, ...]:
        """Raw bytes of each stream for a block of `rows` rows."""

    @abstractmethod
    def stream_shapes(self, dtype: str, row_symbols: int) -> tuple[StreamShape, ...]:
        """What an encoder may know of each stream."""

    @abstractmethod
    def split(self, dtype: str, block: AnyArray) -> tuple[ByteArray, ...]:
        """Streams of a contiguous block; may be views of it."""

    @abstractmethod
    def join(self, dtype: str, streams: Sequence[ByteArray], out: AnyArray) -> None:
        """Fills the contiguous block `out` from streams of exactly `stream_bytes`.

        Raises:
            BundleCorruptError: the streams hold something that no block splits into.
        """


def check_symbols(symbols: AnyArray, limit: int) -> None:
    """Raises BundleCorruptError if a symbol of a narrow dtype exceeds `limit`."""
    highest: Any = symbols.view(np.uint8).max(initial=0)
    if highest > limit:
        raise BundleCorruptError(f"a symbol is {int(highest)}, expected at most {limit}")
