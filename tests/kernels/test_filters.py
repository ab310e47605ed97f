"""The kernels' filters against those of the bundle, which define the bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_bundles import noise, symbols

from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.filters import FILTERS
from tersor.kernels.errors import LayoutError
from tersor.kernels.filters import join_bits, join_float8, join_floats, join_nibbles, reference

SHAPES = [(1, 1), (3, 7), (16, 128), (63, 129)]


def _streams(name: str, dtype: str, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The streams of any bit pattern one after the other, and its bytes."""
    array = symbols(dtype, shape)
    split = FILTERS[name].split(dtype, array)
    return torch.from_numpy(np.concatenate(split)), torch.from_numpy(array.reshape(-1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "width"), [("bf16", 2), ("f16", 2), ("f32", 4), ("f64", 8)])
def test_floats(dtype: str, width: int, shape: tuple[int, int]) -> None:
    streams, expected = _streams("float_split", dtype, shape)
    joined = join_floats(streams, width)
    assert joined.itemsize == width
    assert torch.equal(joined.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "width"), [("bf16", 2), ("f32", 4)])
def test_floats_with_a_base_a_row(dtype: str, width: int, shape: tuple[int, int]) -> None:
    streams, expected = _streams("row_exponent", dtype, shape)
    joined = join_floats(streams, width, rows=shape[0])
    assert torch.equal(joined.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("shape", SHAPES)
def test_nibbles(shape: tuple[int, int]) -> None:
    stream, expected = _streams("nibbles", "u4", shape)
    joined, bad = join_nibbles(stream, expected.numel())
    assert torch.equal(joined, expected)
    assert not bad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bits"), [("f8_e4m3", 3), ("f8_e5m2", 2)])
def test_floats_of_eight_bits(dtype: str, bits: int, shape: tuple[int, int]) -> None:
    streams, expected = _streams("f8_split", dtype, shape)
    joined, bad = join_float8(streams, expected.numel(), bits)
    assert torch.equal(joined, expected)
    assert not bad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bits"), [("bool", 1), ("u4", 4), ("u8", 8), ("i8", 8)])
def test_bit_planes(dtype: str, bits: int, shape: tuple[int, int]) -> None:
    streams, expected = _streams("bit_planes", dtype, shape)
    joined, bad = join_bits(streams, expected.numel(), bits)
    assert torch.equal(joined.view(expected.dtype), expected)
    assert not bad


@pytest.mark.parametrize("count", [1, 7, 8, 33])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("nibbles", "u4"), ("f8_split", "f8_e4m3"), ("f8_split", "f8_e5m2"), ("bit_planes", "u4")],
)
def test_noise_is_refused_exactly_where_the_bundle_refuses_it(
    name: str, dtype: str, count: int
) -> None:
    chosen = FILTERS[name]
    sizes = chosen.stream_bytes(dtype, 1, count)
    for seed in range(60):
        streams = noise(sum(sizes), seed)
        # Mostly zeros, or hardly any would be accepted.
        streams &= noise(sum(sizes), 1000 + seed) & noise(sum(sizes), 2000 + seed)
        streams &= 0x8F if seed % 2 else 0x3F
        try:
            chosen.join(
                dtype, np.split(streams, np.cumsum(sizes)[:-1]), np.empty((1, count), np.uint8)
            )
            expected = False
        except BundleCorruptError:
            expected = True
        joined = torch.from_numpy(streams)
        if name == "nibbles":
            bad = join_nibbles(joined, count)[1]
        elif name == "bit_planes":
            bad = join_bits(joined, count, 4)[1]
        else:
            bad = join_float8(joined, count, 3 if dtype == "f8_e4m3" else 2)[1]
        assert bool(bad) == expected, seed


def test_what_is_no_stream_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"`stream` has shape \[3\], expected \[2\]"):
        join_nibbles(torch.zeros(3, dtype=torch.uint8), 4)
    with pytest.raises(LayoutError, match=r"`streams` has dtype torch\.int8"):
        join_floats(torch.zeros(4, dtype=torch.int8), 2)


def test_nothing_is_joined_from_nothing() -> None:
    empty = torch.empty(0, dtype=torch.uint8)
    assert reference.join_floats(empty, 4, 0).shape == (0,)
    assert join_nibbles(empty, 0)[0].shape == (0,)
