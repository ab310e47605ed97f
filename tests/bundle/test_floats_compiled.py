"""The compiled float filters against plain numpy, a byte of the rotated symbol at a time."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_bundles import symbols

from tersor.bundle.dtypes import AnyArray, ByteArray, numpy_dtype
from tersor.bundle.filters import FILTERS
from tersor.bundle.manifest import DTYPES

FLOATS = ["bf16", "f16", "f32", "f64"]
SHAPES = [(1, 1), (1, 7), (3, 1), (5, 33), (64, 129), (2, (1 << 15) + 1)]


def split_by_numpy(block: AnyArray) -> list[ByteArray]:
    """Rotates left by one bit, then takes the bytes from the highest to the lowest."""
    width = block.itemsize
    unsigned = block.reshape(-1).view(f"<u{width}")
    rotated = (unsigned << 1) | (unsigned >> (8 * width - 1))
    return [
        (rotated >> (8 * byte)).astype(np.uint8)  # the cast keeps the lowest byte
        for byte in range(width - 1, -1, -1)
    ]


def join_by_numpy(streams: list[ByteArray], width: int) -> AnyArray:
    rotated = np.zeros(streams[0].size, f"<u{width}")
    for stream in streams:
        rotated = (rotated << 8) | stream
    result: AnyArray = (rotated >> 1) | (rotated << (8 * width - 1))
    return result


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_streams_are_those_of_numpy(dtype: str, shape: tuple[int, int]) -> None:
    block = symbols(dtype, shape, seed=sum(shape))
    streams = FILTERS["float_split"].split(dtype, block)
    expected = split_by_numpy(block)
    assert [stream.tolist() for stream in streams] == [stream.tolist() for stream in expected]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_streams_join_as_in_numpy(dtype: str, shape: tuple[int, int]) -> None:
    streams = [symbols("u8", shape, seed=seed).reshape(-1) for seed in range(DTYPES[dtype])]
    out = np.empty(shape, numpy_dtype(dtype))
    FILTERS["float_split"].join(dtype, streams, out)
    assert out.tobytes() == join_by_numpy(streams, DTYPES[dtype]).tobytes()


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_get_their_base_back_modulo_256(dtype: str, shape: tuple[int, int]) -> None:
    base = symbols("u8", shape[:1], seed=9)
    relative, *rest = (symbols("u8", shape, seed=seed) for seed in range(DTYPES[dtype]))
    out = np.empty(shape, numpy_dtype(dtype))
    streams = [base, relative.reshape(-1), *(stream.reshape(-1) for stream in rest)]
    FILTERS["row_exponent"].join(dtype, streams, out)
    absolute = (relative + base[:, None]).reshape(-1)
    assert out.tobytes() == join_by_numpy([absolute, *streams[2:]], DTYPES[dtype]).tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_streams_that_cannot_be_written_are_left_alone(dtype: str) -> None:
    # zstd and mapped files give such, beside writable ones of other codecs.
    block = symbols(dtype, (4, 50), seed=3)
    streams = FILTERS["float_split"].split(dtype, block)
    streams[0].flags.writeable = False
    out = np.empty_like(block)
    FILTERS["float_split"].join(dtype, streams, out)
    assert out.tobytes() == block.tobytes()
    assert [stream.flags.writeable for stream in streams] == [False] + [True] * (len(streams) - 1)
