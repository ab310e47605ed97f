"""The bundles behind the golden files of format version 2: every codec, filter and kind of chunk.

Small blocks, so that a few KiB have planes of several chunks with tables and shared chunks.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
from tiny_bundles import PRODUCER, add, decoder_program, noise, symbols, weights, writer

from tersor.bundle import limits
from tersor.bundle.dtypes import AnyArray
from tersor.bundle.manifest import Manifest

# Codecs by name; "auto"; and rANS with classes of rows, or of rows and columns.
KINDS = (
    "raw", "lz4", "zstd", "lz78", "lzw", "huffman", "rans", "rans-rows", "rans-columns", "auto",
)  # fmt: skip


def write_golden(path: Path, kind: str) -> Manifest:
    """Writes the golden bundle of a kind; the same bytes on every machine."""
    classed = kind in {"rans-rows", "rans-columns"}
    with (
        mock.patch.object(limits, "TARGET_BLOCK_RAW_BYTES", 1 << 16 if classed else 1 << 13),
        writer(
            path,
            codec="rans" if classed else kind,
            decode_floor=0.0 if kind == "rans-columns" else 400.0,
            producer=PRODUCER,
            program=decoder_program(),
        ) as target,
    ):
        for name, (dtype, array) in planes(classed=classed).items():
            add(target, name, dtype, array)
        target.add_asset("LICENSE", b"free " * 20, "text/plain")
        return target.commit()


def planes(*, classed: bool) -> dict[str, tuple[str, AnyArray]]:
    """The planes by tensor name."""
    if classed:
        return {"classed": ("u8", _classed((256, 160)))}
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


def _peaked(shape: tuple[int, ...], exponent: int) -> AnyArray:
    """e4m3: few exponents, mantissas and signs at random."""
    exponents = exponent + (_uniform(shape, 11) % 7 == 0)
    mantissa = _uniform(shape, 12) % 8
    sign = _uniform(shape, 13) % 2
    result: AnyArray = (sign << 7) | (exponents << 3) | mantissa
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
