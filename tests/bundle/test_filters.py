"""Filters are exact on every bit pattern, and put bytes where the format says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundles import symbols

from tersor.bundle.dtypes import ByteArray, numpy_dtype
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.filters import FILTERS, check_symbols, filters_for
from tersor.bundle.manifest import DTYPES

PAIRS = [(dtype, entry.name) for dtype in DTYPES for entry in filters_for(dtype)]
COUNTS = [1, 2, 3, 255, (1 << 16) - 1, (1 << 16) + 1]


@pytest.mark.parametrize(("dtype", "name"), PAIRS)
@pytest.mark.parametrize("count", COUNTS)
def test_join_undoes_split(dtype: str, name: str, count: int) -> None:
    entry = FILTERS[name]
    block = symbols(dtype, (1, count), seed=count)
    streams = entry.split(dtype, block)
    assert tuple(stream.size for stream in streams) == entry.stream_bytes(dtype, 1, count)
    assert len(entry.stream_names(dtype)) == len(streams)
    out = np.empty((1, count), numpy_dtype(dtype))
    entry.join(dtype, streams, out)
    assert out.tobytes() == block.tobytes()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_all_16_bit_floats_survive(dtype: str) -> None:
    entry = FILTERS["float_split"]
    block = np.arange(1 << 16, dtype=np.uint16).view(numpy_dtype(dtype))
    out = np.empty_like(block)
    entry.join(dtype, entry.split(dtype, block), out)
    assert out.tobytes() == block.tobytes()


def test_bf16_streams_are_exponent_and_mantissa_with_the_sign_last() -> None:
    # -1.5 is s=1, e=127, m=1000000.
    (exponent, mantissa) = FILTERS["float_split"].split("bf16", np.array([0xBFC0], np.uint16))
    assert exponent.tolist() == [127]
    assert mantissa.tolist() == [0b10000001]


def test_f32_streams_are_the_bytes_of_the_rotated_word() -> None:
    streams = FILTERS["float_split"].split("f32", np.array([-1.5], np.float32))
    assert [stream.tolist() for stream in streams] == [[127], [128], [0], [1]]
    assert FILTERS["float_split"].stream_names("f32") == (
        "exponent", "mantissa2", "mantissa1", "mantissa0",
    )  # fmt: skip


def test_nibbles_put_the_earlier_symbol_low() -> None:
    (stream,) = FILTERS["nibbles"].split("u4", np.array([1, 2, 15], np.uint8))
    assert stream.tolist() == [0x21, 0x0F]


def test_a_set_bit_in_an_unused_nibble_is_damage() -> None:
    out = np.empty(3, np.uint8)
    with pytest.raises(BundleCorruptError, match=r"unused half .* is 1, expected 0"):
        FILTERS["nibbles"].join("u4", [np.array([0x21, 0x1F], np.uint8)], out)


@pytest.mark.parametrize(("limit", "bad"), [(15, 16), (1, 2)])
def test_symbols_beyond_their_dtype_are_damage(limit: int, bad: int) -> None:
    check_symbols(np.array([0, limit], np.uint8), limit)
    check_symbols(np.array([], np.uint8), limit)
    with pytest.raises(BundleCorruptError, match=f"is {bad}, expected at most {limit}"):
        check_symbols(np.array([0, bad], np.uint8), limit)


def test_views_that_are_not_aligned_are_split_and_joined() -> None:
    # A chunk's rows may start anywhere in the plane.
    block: ByteArray = symbols("u4", (102,))[1:]
    (stream,) = FILTERS["nibbles"].split("u4", block)
    out = np.empty(102, np.uint8)[1:]
    FILTERS["nibbles"].join("u4", [stream], out)
    assert out.tobytes() == block.tobytes()


@given(st.lists(st.floats(width=32), max_size=40))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_any_float32_survives(values: list[float]) -> None:
    block = np.array(values, np.float32)
    entry = FILTERS["float_split"]
    out = np.empty_like(block)
    entry.join("f32", entry.split("f32", block), out)
    assert out.tobytes() == block.tobytes()
