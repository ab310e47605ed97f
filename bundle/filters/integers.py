"""Filters of integer symbols: none, two nibbles a byte, bit planes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.bundle.codecs.base import BYTES, StreamShape
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.filters.base import TILE, Filter
from tersor.bundle.manifest import DTYPES


class NoFilter(Filter):
    """One stream, `data`: the little-endian bytes of the symbols."""

    name = "none"
    dtypes = frozenset(DTYPES)
    identity = True

    def stream_names(self, dtype: str) -> tuple[str, ...]:  # noqa: ARG002 - the contract
        return ("data",)

    def stream_bytes(self, dtype: str, rows: int, row_symbols: int) -> tuple[int, ...]:
        return (rows * row_symbols * DTYPES[dtype],)

    def stream_shapes(self, dtype: str, row_symbols: int) -> tuple[StreamShape, ...]:
        width = DTYPES[dtype]
        if width > 2:
            return (BYTES,)
        return (StreamShape(symbol_bytes=width, row_symbols=row_symbols),)

    def split(self, dtype: str, block: AnyArray) -> tuple[ByteArray, ...]:  # noqa: ARG002 - the contract
        return (block.reshape(-1).view(np.uint8),)

    def join(self, dtype: str, streams: Sequence[ByteArray], out: AnyArray) -> None:  # noqa: ARG002 - the contract
        out.reshape(-1).view(np.uint8)[:] = streams[0]


class Nibbles(Filter):
    """One stream, `data`: two u4 symbols a byte, the earlier in the low half.

    An odd block's last high half is zero.
    """

    name = "nibbles"
    dtypes = frozenset({"u4"})

    def stream_names(self, dtype: str) -> tuple[str, ...]:  # noqa: ARG002 - the contract
        return ("data",)

    def stream_bytes(self, dtype: str, rows: int, row_symbols: int) -> tuple[int, ...]:  # noqa: ARG002 - the contract
        return ((rows * row_symbols + 1) // 2,)

    def stream_shapes(self, dtype: str, row_symbols: int) -> tuple[StreamShape, ...]:  # noqa: ARG002 - the contract
        return (StreamShape(row_symbols=row_symbols // 2 if row_symbols % 2 == 0 else 0),)

    def split(self, dtype: str, block: AnyArray) -> tuple[ByteArray, ...]:  # noqa: ARG002 - the contract
        symbols: ByteArray = block.reshape(-1).view(np.uint8)
        stream = np.empty((symbols.size + 1) // 2, np.uint8)
        even = symbols.size & ~1
        # As one little-endian pair: low byte the earlier symbol, high byte the later.
        pairs = symbols[:even].view("<u2")
        np.copyto(stream[: even // 2], pairs | (pairs >> 4), casting="unsafe")
        if even != symbols.size:
            stream[-1] = symbols[-1]
        return (stream,)

    def join(self, dtype: str, streams: Sequence[ByteArray], out: AnyArray) -> None:  # noqa: ARG002 - the contract
        (stream,) = streams
        out = out.reshape(-1)
        even = out.size & ~1
        if even != out.size and stream[-1] > 15:
            raise BundleCorruptError(
                "the unused half of a block's last nibble byte is "
                f"{int(stream[-1]) >> 4}, expected 0"
            )
        pairs = out.view(np.uint8)[:even].view("<u2")
        for start in range(0, pairs.size, TILE):
            tile = pairs[start : start + TILE]
            np.copyto(tile, stream[start : start + tile.size])
            tile |= tile << 4
            tile &= 0x0F0F
        if even != out.size:
            out.view(np.uint8)[-1] = stream[-1]


class BitPlanes(Filter):
    """One stream a bit, highest first, eight symbols a byte, the earliest in the lowest bit.

    For symbols whose high bits are rarely set or whose sign is a coin: each bit gets its own code.
    The unused bits of a last byte are zero.
    """

    name = "bit_planes"
    dtypes = frozenset({"bool", "u4", "u8", "i8"})

    def stream_names(self, dtype: str) -> tuple[str, ...]:
        return tuple(f"bit{bit}" for bit in range(_BITS[dtype] - 1, -1, -1))

    def stream_bytes(self, dtype: str, rows: int, row_symbols: int) -> tuple[int, ...]:
        return ((rows * row_symbols + 7) // 8,) * _BITS[dtype]

    def stream_shapes(self, dtype: str, row_symbols: int) -> tuple[StreamShape, ...]:  # noqa: ARG002 - the contract
        return (BYTES,) * _BITS[dtype]

    def split(self, dtype: str, block: AnyArray) -> tuple[ByteArray, ...]:
        symbols: ByteArray = block.reshape(-1).view(np.uint8)
        return tuple(
            np.packbits(symbols & np.uint8(1 << bit), bitorder="little")
            for bit in range(_BITS[dtype] - 1, -1, -1)
        )

    def join(self, dtype: str, streams: Sequence[ByteArray], out: AnyArray) -> None:
        symbols = out.reshape(-1).view(np.uint8)
        symbols[:] = 0
        unused = -symbols.size % 8
        for bit, stream in zip(range(_BITS[dtype] - 1, -1, -1), streams, strict=True):
            if unused and stream[-1] >> (8 - unused):
                raise BundleCorruptError(
                    f"an unused bit of the last byte of stream bit{bit} is 1, expected 0"
                )
            for start in range(0, symbols.size, TILE):
                tile = symbols[start : start + TILE]
                packed = stream[start // 8 : (start + TILE) // 8]
                bits = np.unpackbits(packed, count=tile.size, bitorder="little")
                tile |= bits << np.uint8(bit)


_BITS = {"bool": 1, "u4": 4, "u8": 8, "i8": 8}
