"""What the chunks of both entropy codecs share: constants, header, bounded reading of sections."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np

from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError

# Symbols of one independent block: 512 blocks in 32 Mi symbols feed a GPU, and what a rANS block
# spends on its 32 final states, 64 bytes beyond their information, is 0.3 % of coded exponents.
BLOCK_SYMBOLS = 1 << 16
LANES = 32

_HEADER = struct.Struct("<BBBBIII")
HEADER_BYTES = _HEADER.size
_LAYOUT = 1
_INLINE = 1
# Sections are padded to words of a GPU's loads.
ALIGNMENT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHeader:
    """The first 16 bytes of a chunk."""

    symbol_bytes: int  # 1 or 2
    row_symbols: int  # 0: rows mean nothing
    model_bytes: int  # of the model in the chunk; 0: the stream's table is the model
    patches: int  # symbols that stand beside the coded ones

    def pack(self) -> bytes:
        """The header's bytes."""
        inline = _INLINE if self.model_bytes else 0
        return _HEADER.pack(
            _LAYOUT, inline, self.symbol_bytes, 0, self.row_symbols, self.model_bytes, self.patches
        )

    @classmethod
    def unpack(cls, sections: Sections) -> Self:
        """Reads and checks the header.

        Raises:
            BundleCorruptError: a field is out of range.
        """
        data = sections.take(HEADER_BYTES).tobytes()
        layout, flags, symbol_bytes, reserved, row_symbols, model_bytes, patches = _HEADER.unpack(
            data
        )
        if layout != _LAYOUT or flags > _INLINE or reserved:
            raise BundleCorruptError(
                f"an entropy-coded chunk has layout {layout}, flags {flags} and reserved byte "
                f"{reserved}; expected {_LAYOUT}, 0 or 1, and 0"
            )
        if symbol_bytes not in {1, 2}:
            raise BundleCorruptError(
                f"an entropy-coded chunk has symbols of {symbol_bytes} bytes; expected 1 or 2"
            )
        if (model_bytes > 0) != (flags == _INLINE):
            raise BundleCorruptError(
                f"an entropy-coded chunk has flags {flags} but a model of {model_bytes} bytes"
            )
        return cls(
            symbol_bytes=symbol_bytes,
            row_symbols=row_symbols,
            model_bytes=model_bytes,
            patches=patches,
        )


class Sections:
    """Takes the sections of a chunk one after the other; never beyond its end."""

    def __init__(self, data: ByteArray, what: str) -> None:
        self._data = data
        self._what = what
        self.at = 0

    def take(self, size: int) -> ByteArray:
        """The next `size` bytes, a view. Raises BundleCorruptError if there are fewer."""
        end = self.at + size
        if end > self._data.size:
            raise BundleCorruptError(
                f"{self._what} of {self._data.size} bytes ends before byte {end}"
            )
        part = self._data[self.at : end]
        self.at = end
        return part

    def array(self, dtype: str, count: int) -> AnyArray:
        """The next `count` integers, a copy at an aligned address; then padding."""
        values = self.take(count * np.dtype(dtype).itemsize).copy().view(dtype)
        self.pad()
        return values

    def pad(self) -> None:
        """Skips zeros up to the next multiple of four. Raises BundleCorruptError if not zero."""
        unused = -self.at % ALIGNMENT
        # As bytes: a numpy reduction takes 2 µs, and a chunk has some thirty paddings.
        if self.take(unused).tobytes().strip(b"\0"):
            raise BundleCorruptError(f"{self._what} has padding that is not zero")

    def finish(self) -> None:
        """Raises BundleCorruptError unless everything was taken."""
        if self.at != self._data.size:
            raise BundleCorruptError(
                f"{self._what} has {self._data.size} bytes; its sections end at {self.at}"
            )


def padded(data: bytes) -> bytes:
    """The bytes and zeros up to a multiple of four."""
    return data + bytes(-len(data) % ALIGNMENT)


def symbols_of(data: ByteArray, symbol_bytes: int) -> AnyArray:
    """The symbols of a chunk's raw bytes: uint8, or uint16 at an aligned address."""
    if symbol_bytes == 1:
        return data
    return np.ascontiguousarray(data).copy().view("<u2")


def num_blocks(symbols: int) -> int:
    """Blocks of a chunk."""
    return -(-symbols // BLOCK_SYMBOLS)


def symbol_kind(symbol_bytes: int) -> type[np.uint8 | np.uint16]:
    """The numpy type of symbols."""
    return np.uint8 if symbol_bytes == 1 else np.uint16


def raw_symbols(raw_bytes: int, header: ChunkHeader) -> int:
    """Symbols that a chunk decodes to. Raises BundleCorruptError if the bytes are no multiple."""
    if raw_bytes % header.symbol_bytes:
        raise BundleCorruptError(
            f"a chunk of {raw_bytes} raw bytes cannot hold symbols of {header.symbol_bytes} bytes"
        )
    return raw_bytes // header.symbol_bytes


def chunk_model(sections: Sections, header: ChunkHeader, table: ByteArray | None) -> ByteArray:
    """The bytes of the chunk's own model, or of its stream's table.

    Raises:
        BundleCorruptError: it has neither.
    """
    if header.model_bytes:
        data = sections.take(header.model_bytes)
        sections.pad()
        return data
    if table is None:
        raise BundleCorruptError("an entropy-coded chunk refers to a table; its stream has none")
    return table
