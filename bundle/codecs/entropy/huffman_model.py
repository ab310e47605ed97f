"""A canonical Huffman code of at most 12 bits: lengths, codes and decoding tables."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np

from tersor.bundle.codecs.entropy.frequencies import kept_symbols, patch_bits
from tersor.bundle.codecs.entropy.layout import Sections, padded
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError

# A table of 4096 entries lies in the first-level cache; shorter codes lose little on weights.
MAX_LENGTH = 12
_TABLE = 1 << MAX_LENGTH

_HEAD = struct.Struct("<BBHI")


@dataclass(frozen=True, slots=True, kw_only=True)
class HuffmanModel:
    """Symbols and the lengths of their codes: a complete code."""

    symbol_bytes: int
    symbols: AnyArray  # int64 [n], ascending, n >= 2
    lengths: AnyArray  # int64 [n], 1 to MAX_LENGTH

    @classmethod
    def of_counts(cls, counts: AnyArray, symbol_bytes: int) -> Self:
        """The best code for `counts`, int64 [alphabet], with rare symbols left to patches."""
        kept = kept_symbols(counts, MAX_LENGTH, symbol_bytes)
        if kept.size == 1:  # a complete code has two symbols, and the second costs nothing
            kept = np.sort(np.array([kept[0], kept[0] ^ 1]))
        lengths = code_lengths(np.maximum(counts[kept], 1))
        return cls(symbol_bytes=symbol_bytes, symbols=kept, lengths=lengths)

    def pack(self) -> bytes:
        """The model's bytes, a multiple of four."""
        return b"".join(
            [
                _HEAD.pack(self.symbol_bytes, MAX_LENGTH, 0, self.symbols.size),
                padded(self.symbols.astype(f"<u{self.symbol_bytes}").tobytes()),
                padded(self.lengths.astype(np.uint8).tobytes()),
            ]
        )

    @classmethod
    def unpack(cls, data: ByteArray) -> Self:
        """Reads and checks a model.

        Raises:
            BundleCorruptError: it is not one, or its code is not complete.
        """
        sections = Sections(data, "a Huffman model")
        symbol_bytes, longest, reserved, count = _HEAD.unpack(sections.take(_HEAD.size).tobytes())
        if symbol_bytes not in {1, 2} or longest != MAX_LENGTH or reserved:
            raise BundleCorruptError(
                f"a Huffman model has symbols of {symbol_bytes} bytes and codes of up to {longest} "
                f"bits; expected 1 or 2 and {MAX_LENGTH}"
            )
        if not 2 <= count <= _TABLE:
            raise BundleCorruptError(f"a Huffman model has {count} symbols; expected 2 to {_TABLE}")
        symbols = sections.array(f"<u{symbol_bytes}", count).astype(np.int64)
        lengths = sections.array("u1", count).astype(np.int64)
        sections.finish()
        if (np.diff(symbols) <= 0).any():
            raise BundleCorruptError("the symbols of a Huffman model do not ascend")
        if lengths.min() < 1 or lengths.max() > MAX_LENGTH:
            raise BundleCorruptError(
                f"a Huffman code has lengths of {int(lengths.min())} to {int(lengths.max())} bits; "
                f"expected 1 to {MAX_LENGTH}"
            )
        filled = int((_TABLE >> lengths).sum())
        if filled != _TABLE:
            raise BundleCorruptError(
                f"a Huffman code fills {filled} of {_TABLE} table entries; expected all, once"
            )
        return cls(symbol_bytes=symbol_bytes, symbols=symbols, lengths=lengths)

    def codes(self) -> AnyArray:
        """For encoding: uint32 [alphabet], length << 16 | code; 0: the code lacks the symbol."""
        order = np.lexsort((self.symbols, self.lengths))
        lengths = self.lengths[order]
        # Canonical: in order of length, then symbol; each begins where the one before ends.
        starts = np.cumsum(_TABLE >> lengths) - (_TABLE >> lengths)
        codes = np.zeros(1 << (8 * self.symbol_bytes), np.uint32)
        codes[self.symbols[order]] = (lengths << 16) | (starts >> (MAX_LENGTH - lengths))
        return codes

    def singles(self) -> AnyArray:
        """For decoding: uint32 [4096] by the next 12 bits, symbol | length << 16."""
        order = np.lexsort((self.symbols, self.lengths))
        lengths = self.lengths[order]
        entries = self.symbols[order] | (lengths << 16)
        return np.repeat(entries, _TABLE >> lengths).astype(np.uint32)

    def bits(self) -> AnyArray:
        """Bits of each symbol, float64 [alphabet], patches included."""
        bits = np.full(1 << (8 * self.symbol_bytes), float(patch_bits(self.symbol_bytes)))
        bits[self.symbols] = self.lengths
        return bits

    def fill(self) -> int:
        """The symbol that is coded in the place of a patch: one of the shortest code."""
        return int(self.symbols[self.lengths.argmin()])


def code_lengths(counts: AnyArray) -> AnyArray:
    """Lengths of an optimal code of at most MAX_LENGTH bits, by package-merge.

    Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", J. ACM
    37(3), 1990. `counts` int64 [n], each at least 1, 2 <= n <= 4096.
    """
    order = np.argsort(counts, kind="stable")
    leaves = counts[order]
    rows: list[AnyArray] = []  # per level, whether each item of the merged list is a leaf
    packages = np.empty(0, np.int64)
    for _ in range(MAX_LENGTH):
        merged = np.concatenate([leaves, packages])
        place = np.argsort(merged, kind="stable")
        rows.append(place < leaves.size)
        merged = merged[place]
        pairs = merged.size // 2 * 2
        packages = merged[0:pairs:2] + merged[1:pairs:2]
    lengths = np.zeros(leaves.size, np.int64)
    taken = 2 * leaves.size - 2
    for row in reversed(rows):
        chosen = int(row[:taken].sum())
        lengths[:chosen] += 1
        taken = 2 * (taken - chosen)
    result = np.empty_like(lengths)
    result[order] = lengths
    return result
