"""The bundles behind the golden files of format version 2: every codec, filter and kind of chunk.

Small blocks, so that a few KiB have planes of several chunks with tables and shared chunks.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
from tiny_bundles import PRODUCER, add, decoder_program, noise, symbols, weights, writer

from tersor.bundle import limits
from tersor.bundle.dtypes import AnyArray, numpy_dtype
from tersor.bundle.manifest import Manifest

# Codecs by name; "auto"; rANS with classes of rows, or of rows and columns; chunks of several
# blocks with patches; and every dtype.
KINDS = (
    "raw", "lz4", "zstd", "lz78", "lzw", "huffman", "rans", "rans-rows", "rans-columns", "auto",
    "blocks-huffman", "blocks-rans", "dtypes",
)  # fmt: skip

# What a kind holds and how large its blocks of rows are, where that is not "small" and 8 KiB.
_CONTENTS = {
    "rans-rows": "classed", "rans-columns": "classed",
    "blocks-huffman": "blocks", "blocks-rans": "blocks",
    "dtypes": "dtypes",
}  # fmt: skip
_CODECS = {
    "rans-rows": "rans", "rans-columns": "rans",
    "blocks-huffman": "huffman", "blocks-rans": "rans",
    "dtypes": "lz4",
}  # fmt: skip
_BLOCK_BYTES = {"classed": 1 << 16, "blocks": 1 << 18, "dtypes": 1 << 10}


def content_of(kind: str) -> str:
    """Which planes the golden bundle of a kind holds."""
    return _CONTENTS.get(kind, "small")


def write_golden(path: Path, kind: str) -> Manifest:
    """Writes the golden bundle of a kind; the same bytes on every machine."""
    content = content_of(kind)
    with (
        mock.patch.object(limits, "MIN_ALIGNED_PLANE_BYTES", 0),
        mock.patch.object(limits, "TARGET_BLOCK_RAW_BYTES", _BLOCK_BYTES.get(content, 1 << 13)),
        writer(
            path,
            codec=_CODECS.get(kind, kind),
            decode_floor=0.0 if kind == "rans-columns" else 400.0,
            producer=PRODUCER,
            program=decoder_program(),
        ) as target,
    ):
        for name, (dtype, array) in planes(content).items():
            add(target, name, dtype, array)
        target.add_asset("LICENSE", b"free " * 20, "text/plain")
        return target.commit()


def planes(content: str) -> dict[str, tuple[str, AnyArray]]:
    """The planes by tensor name."""
    if content == "classed":
        return {"classed": ("u8", _classed((256, 160)))}
    if content == "blocks":
        return _blocks()
    if content == "dtypes":
        return _dtypes()
    return {
        "bf16": ("bf16", weights((48, 64))),
        "rows": ("bf16", _scaled_rows((32, 96))),
        "f32": ("f32", symbols("f32", (3, 5))),
        "f8": ("f8_e4m3", _peaked((40, 61), 6)),
        "codes": ("u4", _bell((300, 51), 15)),
        "bits": ("u8", symbols("u4", (70, 33))),
        "wide": ("i16", _wide((120, 96))),
        "repeated": ("i8", np.tile(symbols("i8", (64, 128)), (3, 1))),
        "scalar": ("f32", np.array(0.5, np.float32)),
        "empty": ("i8", np.zeros((0, 4), np.int8)),
    }


def _blocks() -> dict[str, tuple[str, AnyArray]]:
    """One chunk a stream: the longest of several blocks, the last one not full."""
    return {
        "sparse": ("u8", _sparse((700, 211)).astype(np.uint8)),
        "wide": ("u16", (300 * _sparse((350, 211))).astype(np.uint16)),
        "rows": ("f32", (_scaled_rows((33, 65)).astype(np.uint32) << 16).view(np.float32)),
        "f8": ("f8_e5m2", _peaked((41, 61), 14, bits=2)),
    }


def _dtypes() -> dict[str, tuple[str, AnyArray]]:
    """Every dtype, in chunks of whole rows of which the last has fewer."""
    narrow = {
        dtype: (dtype, (symbols(dtype, (29, 45)) & 1).astype(numpy_dtype(dtype)))
        for dtype in ("bool", "u4", "u8", "i8")
    }
    stepped = {
        dtype: (dtype, np.arange(-300, 300, dtype="<i8").reshape(24, 25).astype(numpy_dtype(dtype)))
        for dtype in ("u16", "i16", "u32", "i32", "u64", "i64", "f16", "f32", "f64")
    }
    return {
        **narrow,
        **stepped,
        "bf16": ("bf16", weights((24, 25))),
        "f8_e4m3": ("f8_e4m3", _peaked((25, 61), 6)),
        "f8_e5m2": ("f8_e5m2", _peaked((25, 61), 14, bits=2)),
    }


def _uniform(shape: tuple[int, ...], seed: int) -> AnyArray:
    """Unsigned 16-bit integers."""
    count = int(np.prod(shape))
    return noise(2 * count, seed).view("<u2").reshape(shape).astype(np.int64)


def _bell(shape: tuple[int, ...], top: int) -> AnyArray:
    """0 to `top`, the middle ones most often."""
    total = sum(_uniform(shape, seed) for seed in range(3, 7))
    return (np.asarray(total) * (top + 1) // (4 << 16)).astype(np.uint8)


def _scaled_rows(shape: tuple[int, ...]) -> AnyArray:
    """bf16 rows that differ by powers of two."""
    shift = (np.arange(shape[0]) % 16 * 3).astype(np.uint16) << 7
    scaled: AnyArray = weights(shape, seed=5) - shift[:, None]
    return scaled.astype(np.uint16)


def _sparse(shape: tuple[int, ...]) -> AnyArray:
    """Zeros, one in 64 of them another symbol of a few, and each of some others once."""
    value = _uniform(shape, 50)
    result: AnyArray = np.where(value < 1024, 1 + value % 3, 0)
    result.reshape(-1)[[0, 65535, 65536, -1]] = [100, 101, 102, 103]
    return result


def _peaked(shape: tuple[int, ...], exponent: int, bits: int = 3) -> AnyArray:
    """8-bit floats of `bits` of mantissa: few exponents, mantissas and signs at random."""
    exponents = exponent + (_uniform(shape, 11) % 7 == 0)
    mantissa = _uniform(shape, 12) % (1 << bits)
    sign = _uniform(shape, 13) % 2
    result: AnyArray = (sign << 7) | (exponents << bits) | mantissa
    return result.astype(np.uint8)


def _wide(shape: tuple[int, ...]) -> AnyArray:
    """Codes of a quantizer with one step: around 0, some far out."""
    total = sum(_uniform(shape, seed) for seed in range(30, 34)) - (2 << 16)
    codes = np.asarray(total) // 512
    codes[0, 0] = -30000
    return codes.astype(np.int16)


def _classed(shape: tuple[int, ...]) -> AnyArray:
    """Rows and columns of four classes each: how often a symbol is not zero."""
    rows = np.array([2, 8, 32, 128])[np.arange(shape[0]) % 4][:, None]
    columns = np.array([1, 2, 4, 8])[np.arange(shape[1]) % 4][None, :]
    value = _uniform(shape, 40)
    result: AnyArray = np.where(value * rows * columns < (1 << 17), 1 + value % 5, 0)
    symbols_: AnyArray = result.astype(np.uint8)
    return symbols_
