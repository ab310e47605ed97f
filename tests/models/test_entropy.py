"""Chunks of the bundle's rANS codec in the kernels' form, decoded by its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tersor.bundle.codecs import RansCodec, StreamShape
from tersor.bundle.codecs.entropy.rans_chunk import RansChunk
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.encoded_plane import StoredChunk
from tersor.bundle.errors import BundleCorruptError
from tersor.kernels.entropy import EncodedChunk, RansBatch
from tersor.kernels.entropy.batch import TableChoice
from tersor.kernels.entropy.reference import decode
from tersor.models.entropy import encoded_chunks

HOST = torch.device("cpu")
Symbols = npt.NDArray[Any]  # uint8 or uint16


def symbols_of(size: int, symbol_bytes: int, row_symbols: int = 0, seed: int = 0) -> Symbols:
    """Bell-shaped, rows and columns of several scales, and now and then one far outside."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=size)
    if row_symbols:
        rows, columns = size // row_symbols, row_symbols
        scales = np.exp(1.5 * rng.normal(size=(rows, 1)) + 1.5 * rng.normal(size=(1, columns)))
        values = (values.reshape(rows, columns) * scales).reshape(-1)
    top = 250 if symbol_bytes == 1 else 60000
    symbols = np.clip(np.round(values * 10 + 100), 0, 200 * symbol_bytes)
    symbols[1500::2000] = top
    return symbols.astype(np.uint8 if symbol_bytes == 1 else np.uint16)


def stored_chunk(symbols: Symbols, table: ByteArray | None = None, **shape: Any) -> StoredChunk:
    stream = StreamShape(symbol_bytes=symbols.itemsize, **shape)
    (encode,) = RansCodec().encoders
    raw = symbols.view(np.uint8)
    return StoredChunk(
        codec="rans",
        # A copy: bytes of a reader may be written to.
        stored=np.frombuffer(encode(raw, stream, table), np.uint8).copy(),
        raw_bytes=raw.size,
        table=table,
    )


def encoded(chunk: StoredChunk) -> EncodedChunk:
    """The one chunk as the kernels take it."""
    (parsed,) = encoded_chunks([chunk])
    return parsed


@pytest.mark.parametrize("symbol_bytes", [1, 2])
@pytest.mark.parametrize("size", [1, 31, 33, 65535, 65536, 65537, 200001])
def test_odd_sizes(size: int, symbol_bytes: int) -> None:
    symbols = symbols_of(size, symbol_bytes)
    decoded, errors = decode(encoded(stored_chunk(symbols)))
    assert np.array_equal(decoded.numpy(), symbols)
    assert not errors.any()


@pytest.mark.parametrize(
    ("width", "column_classes", "symbol_bytes", "tables", "choice"),
    [
        (256, False, 1, 4, TableChoice.ROW),
        (256, False, 2, 4, TableChoice.ROW),
        (256, True, 1, 16, TableChoice.COLUMN),
        (256, True, 2, 16, TableChoice.COLUMN),
        (250, True, 1, 16, TableChoice.SYMBOL),
        (250, False, 1, 1, TableChoice.ROW),  # without classes: rows are not whole steps
    ],
)
def test_classes(
    width: int,
    column_classes: bool,
    symbol_bytes: int,
    tables: int,
    choice: TableChoice,
) -> None:
    symbols = symbols_of(600 * width, symbol_bytes, width)
    stored = stored_chunk(symbols, row_symbols=width, column_classes=column_classes)
    chunk = encoded(stored)
    assert chunk.tables.count == tables
    assert RansBatch.pack([chunk], HOST).choice == choice
    assert np.array_equal(decode(chunk)[0].numpy(), symbols)


def test_patches() -> None:
    symbols = symbols_of(100000, 1)
    chunk = encoded(stored_chunk(symbols))
    assert chunk.patch_positions.numel() > 0
    assert np.array_equal(decode(chunk)[0].numpy(), symbols)


def test_a_table_of_one_symbol() -> None:
    symbols = np.full(70000, 9, np.uint8)
    chunk = encoded(stored_chunk(symbols))
    assert chunk.words.numel() == 0
    assert np.array_equal(decode(chunk)[0].numpy(), symbols)


def test_chunks_share_the_table_of_their_stream() -> None:
    parts = [symbols_of(40000, 1, seed=seed) for seed in range(3)]
    table = RansCodec().learn([part.view(np.uint8) for part in parts], StreamShape())
    assert table is not None
    chunks = [stored_chunk(part, table) for part in parts]
    parsed = encoded_chunks(chunks)
    batch = RansBatch.pack(parsed, HOST)
    assert batch.slots.numel() == 1 << 12
    for chunk, part in zip(parsed, parts, strict=True):
        assert np.array_equal(decode(chunk)[0].numpy(), part)


def test_bytes_at_odd_addresses_that_may_not_be_written() -> None:
    symbols = symbols_of(5000, 1)
    chunk = stored_chunk(symbols)
    moved = np.frombuffer(b"\0" + chunk.stored.tobytes(), np.uint8)[1:]
    shifted = StoredChunk(codec="rans", stored=moved, raw_bytes=chunk.raw_bytes)
    assert np.array_equal(decode(encoded(shifted))[0].numpy(), symbols)


def test_the_sections_of_a_chunk_are_public() -> None:
    symbols = symbols_of(65536 + 10, 2)
    stored = stored_chunk(symbols)
    chunk = RansChunk(stored.stored, stored.raw_bytes, None)
    assert (chunk.symbols, chunk.row_symbols, chunk.row_class.size) == (65546, 0, 0)
    assert chunk.states.shape == (2, 32)
    assert chunk.words.size == chunk.ends[-1]
    assert chunk.model.pack() == chunk.packed_model.tobytes()
    positions, values = chunk.patches
    assert (symbols[positions] == values).all()


def test_an_empty_chunk() -> None:
    empty = stored_chunk(np.empty(0, np.uint8))
    assert RansCodec().decode(empty.stored, 0).size == 0
    assert encoded(empty).symbols == 0


def test_malformed_chunks_are_corrupt() -> None:
    symbols = symbols_of(100000, 1)
    good = stored_chunk(symbols)
    cut = StoredChunk(codec="rans", stored=good.stored[:-4], raw_bytes=good.raw_bytes)
    with pytest.raises(BundleCorruptError, match="rANS chunk of"):
        encoded_chunks([good, cut])
    patches = RansChunk(good.stored, good.raw_bytes, None).patches[0]
    assert patches.size > 1
    at = good.stored.tobytes().index(patches.astype("<u4").tobytes())
    swapped = good.stored.copy()
    swapped[at : at + 4], swapped[at + 4 : at + 8] = (
        good.stored[at + 4 : at + 8],
        good.stored[at : at + 4],
    )
    bad = StoredChunk(codec="rans", stored=swapped, raw_bytes=good.raw_bytes)
    with pytest.raises(BundleCorruptError, match="`patch_positions` must ascend"):
        encoded_chunks([bad])
