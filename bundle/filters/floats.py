"""Filters of floats: the exponent, which has few likely values, apart from sign and mantissa."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.bundle.codecs.base import BYTES, StreamShape
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.filters.base import Filter
from tersor.bundle.manifest import DTYPES


class FloatSplit(Filter):
    """One stream a byte of the symbol rotated left by one bit, most significant byte first.

    The rotation moves the sign behind the mantissa, so that the exponent of bf16 and f32 is a byte
    of its own (its entropy is about 2.6 bits), and the highest byte of f16 and f64 holds the
    exponent's varying bits:

        bf16  s eeeeeeee mmmmmmm  ->  exponent: eeeeeeee   mantissa0: mmmmmmms

    Trained mantissas are noise and stay raw; the low bytes of a bf16 value widened to f32 are zero
    and cost nothing, which interleaved they would.
    """

    name = "float_split"
    dtypes = frozenset({"bf16", "f16", "f32", "f64"})

    def stream_names(self, dtype: str) -> tuple[str, ...]:
        width = DTYPES[dtype]
        return ("exponent", *(f"mantissa{byte}" for byte in range(width - 2, -1, -1)))

    def stream_bytes(self, dtype: str, rows: int, row_symbols: int) -> tuple[int, ...]:
        return (rows * row_symbols,) * DTYPES[dtype]

    def stream_shapes(self, dtype: str, row_symbols: int) -> tuple[StreamShape, ...]:
        return (StreamShape(row_symbols=row_symbols), *(BYTES,) * (DTYPES[dtype] - 1))

    def split(self, dtype: str, block: AnyArray) -> tuple[ByteArray, ...]:
        from tersor.bundle.filters.floats_compiled import SPLIT

        width = DTYPES[dtype]
        plane = block.reshape(-1).view(f"<u{width}")
        streams = tuple(np.empty(plane.size, np.uint8) for _ in range(width))
        SPLIT[width](plane, *streams)
        return streams

    def join(self, dtype: str, streams: Sequence[ByteArray], out: AnyArray) -> None:
        _join(dtype, _NO_BASE, streams, out)


class RowExponent(FloatSplit):
    """`float_split` with each row's usual exponent taken off its exponents, modulo 256.

    One more stream, `base`, has a byte a row. Output channels that differ in scale then share one
    distribution: on Gaussian rows whose scales spread by a factor of e (one sigma) it saves 17 % of
    the exponents, which is less than their order-0 entropy; on MiniLM and pico, whose rows are
    alike, nothing.
    """

    name = "row_exponent"
    dtypes = frozenset({"bf16", "f32"})

    def stream_names(self, dtype: str) -> tuple[str, ...]:
        return ("base", *super().stream_names(dtype))

    def stream_bytes(self, dtype: str, rows: int, row_symbols: int) -> tuple[int, ...]:
        return (rows, *super().stream_bytes(dtype, rows, row_symbols))

    def stream_shapes(self, dtype: str, row_symbols: int) -> tuple[StreamShape, ...]:
        return (BYTES, *super().stream_shapes(dtype, row_symbols))

    def split(self, dtype: str, block: AnyArray) -> tuple[ByteArray, ...]:
        exponent, *rest = super().split(dtype, block)
        rows = exponent.reshape(block.shape[0], -1)
        # Zeros have exponent 0 and say nothing of a row's scale.
        weights = np.maximum(1, np.count_nonzero(rows, axis=1))
        sums = rows.sum(axis=1, dtype=np.int64)
        base = ((sums + weights // 2) // weights).astype(np.uint8)
        return (base, (rows - base[:, None]).reshape(-1), *rest)

    def join(self, dtype: str, streams: Sequence[ByteArray], out: AnyArray) -> None:
        base, *split = streams
        _join(dtype, base, split, out)


def _join(dtype: str, base: ByteArray, streams: Sequence[ByteArray], out: AnyArray) -> None:
    """Fills `out`, in as many rows as `base` has bytes."""
    from tersor.bundle.filters.floats_compiled import JOIN

    width = DTYPES[dtype]
    plane = out.reshape(-1).view(f"<u{width}")
    row = plane.size // max(1, base.size)
    # The loops check no bounds.
    assert row * base.size == plane.size
    assert all(stream.size == plane.size for stream in streams)
    JOIN[width](_read_only(base), *map(_read_only, streams), row, plane)


def _read_only(data: ByteArray) -> ByteArray:
    """A view that cannot be written to.

    What codecs give is either, and a compiled function is compiled anew for each mix.
    """
    view = data.view()
    view.flags.writeable = False
    return view


class Float8Split(Filter):
    """The exponent of an 8-bit float in a byte, and sign and mantissa in a nibble, two a byte.

        e4m3  s eeee mmm  ->  exponent: 0000eeee   sign_mantissa: smmm
        e5m2  s eeeee mm  ->  exponent: 000eeeee   sign_mantissa: 0smm

    The earlier nibble is the lower one; a block with an odd number of symbols ends with a zero one.
    """

    name = "f8_split"
    dtypes = frozenset({"f8_e4m3", "f8_e5m2"})

    def stream_names(self, dtype: str) -> tuple[str, ...]:  # noqa: ARG002 - the contract
        return ("exponent", "sign_mantissa")

    def stream_bytes(self, dtype: str, rows: int, row_symbols: int) -> tuple[int, ...]:  # noqa: ARG002 - the contract
        count = rows * row_symbols
        return (count, (count + 1) // 2)

    def stream_shapes(self, dtype: str, row_symbols: int) -> tuple[StreamShape, ...]:  # noqa: ARG002 - the contract
        return (StreamShape(row_symbols=row_symbols), BYTES)

    def split(self, dtype: str, block: AnyArray) -> tuple[ByteArray, ...]:
        bits = _MANTISSA_BITS[dtype]
        symbols: ByteArray = block.reshape(-1).view(np.uint8)
        exponent: ByteArray = (symbols & np.uint8(0x7F)) >> np.uint8(bits)
        nibbles = np.zeros((symbols.size + 1) // 2 * 2, np.uint8)
        nibbles[: symbols.size] = ((symbols >> 7) << bits) | (symbols & ((1 << bits) - 1))
        packed: ByteArray = nibbles[0::2] | (nibbles[1::2] << np.uint8(4))
        return exponent, packed

    def join(self, dtype: str, streams: Sequence[ByteArray], out: AnyArray) -> None:
        bits = _MANTISSA_BITS[dtype]
        exponent, packed = streams
        nibbles = np.empty(2 * packed.size, np.uint8)
        nibbles[0::2] = packed & 0x0F
        nibbles[1::2] = packed >> 4
        unused = nibbles[exponent.size :].any()
        if unused or exponent.max() >> (7 - bits) or nibbles.max() >> (bits + 1):
            raise BundleCorruptError(
                f"a block of {dtype} has an exponent of more than {7 - bits} bits, or a sign and "
                f"mantissa of more than {bits + 1}"
            )
        nibbles = nibbles[: exponent.size]
        symbols = out.reshape(-1).view(np.uint8)
        np.left_shift(exponent, bits, out=symbols)
        symbols |= nibbles & ((1 << bits) - 1)
        symbols |= (nibbles >> bits) << 7


_MANTISSA_BITS = {"f8_e4m3": 3, "f8_e5m2": 2}
_NO_BASE: ByteArray = np.zeros(1, np.uint8)
