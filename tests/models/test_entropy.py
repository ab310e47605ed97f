"""Chunks of the bundle's rANS codec through the kernels' form: its reference, and the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tersor.bundle.codecs import RansCodec, StreamShape
from tersor.bundle.codecs.entropy.rans_chunk import RansChunk
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCorruptError
from tersor.kernels.entropy import EncodedChunk, RansBatch
from tersor.kernels.entropy.batch import TableChoice
from tersor.kernels.entropy.reference import decode
from tersor.models import entropy
from tersor.models.entropy import StoredChunk, decode_rans, rans_batch

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
        # A copy: bytes of a reader may be written to.
        stored=np.frombuffer(encode(raw, stream, table), np.uint8).copy(),
        raw_bytes=raw.size,
        table=table,
    )


def encoded(chunk: StoredChunk, monkeypatch: pytest.MonkeyPatch) -> EncodedChunk:
    """What `rans_batch` packs."""
    packed: list[EncodedChunk] = []

    def pack(chunks: list[EncodedChunk], device: torch.device) -> None:
        packed.extend(chunks)

    with monkeypatch.context() as patch:
        patch.setattr(RansBatch, "pack", pack)
        rans_batch([chunk], HOST)
    return packed[0]


@pytest.mark.parametrize("symbol_bytes", [1, 2])
@pytest.mark.parametrize("size", [1, 31, 33, 65535, 65536, 65537, 200001])
def test_odd_sizes(size: int, symbol_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = symbols_of(size, symbol_bytes)
    decoded, errors = decode(encoded(stored_chunk(symbols), monkeypatch))
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    symbols = symbols_of(600 * width, symbol_bytes, width)
    stored = stored_chunk(symbols, row_symbols=width, column_classes=column_classes)
    chunk = encoded(stored, monkeypatch)
    assert chunk.tables.count == tables
    assert rans_batch([stored], HOST).choice == choice
    assert np.array_equal(decode(chunk)[0].numpy(), symbols)


def test_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = symbols_of(100000, 1)
    chunk = encoded(stored_chunk(symbols), monkeypatch)
    assert chunk.patch_positions.numel() > 0
    assert np.array_equal(decode(chunk)[0].numpy(), symbols)


def test_a_table_of_one_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.full(70000, 9, np.uint8)
    chunk = encoded(stored_chunk(symbols), monkeypatch)
    assert chunk.words.numel() == 0
    assert np.array_equal(decode(chunk)[0].numpy(), symbols)


def test_chunks_share_the_table_of_their_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [symbols_of(40000, 1, seed=seed) for seed in range(3)]
    table = RansCodec().learn([part.view(np.uint8) for part in parts], StreamShape())
    assert table is not None
    chunks = [stored_chunk(part, table) for part in parts]
    batch = rans_batch(chunks, HOST)
    assert batch.slots.numel() == 1 << 12
    for chunk, part in zip(chunks, parts, strict=True):
        assert np.array_equal(decode(encoded(chunk, monkeypatch))[0].numpy(), part)


def test_bytes_at_odd_addresses_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = symbols_of(5000, 1)
    chunk = stored_chunk(symbols)
    moved = np.frombuffer(b"\0" + chunk.stored.tobytes(), np.uint8)[1:]
    shifted = StoredChunk(stored=moved, raw_bytes=chunk.raw_bytes)
    assert np.array_equal(decode(encoded(shifted, monkeypatch))[0].numpy(), symbols)


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
    assert rans_batch([empty], HOST).symbols == 0


def test_malformed_chunks_are_corrupt() -> None:
    symbols = symbols_of(100000, 1)
    good = stored_chunk(symbols)
    cut = StoredChunk(stored=good.stored[:-4], raw_bytes=good.raw_bytes)
    with pytest.raises(BundleCorruptError, match="rANS chunk of"):
        rans_batch([good, cut], HOST)
    patches = RansChunk(good.stored, good.raw_bytes, None).patches[0]
    assert patches.size > 1
    at = good.stored.tobytes().index(patches.astype("<u4").tobytes())
    swapped = good.stored.copy()
    swapped[at : at + 4], swapped[at + 4 : at + 8] = (
        good.stored[at + 4 : at + 8],
        good.stored[at : at + 4],
    )
    bad = StoredChunk(stored=swapped, raw_bytes=good.raw_bytes)
    with pytest.raises(BundleCorruptError, match="`patch_positions` must ascend"):
        rans_batch([bad], HOST)
    wide = stored_chunk(symbols_of(100, 2))
    with pytest.raises(BundleCorruptError, match="symbols have one width"):
        rans_batch([good, wide], HOST)


def test_damage_that_a_launch_finds_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [stored_chunk(symbols_of(50, 1)), stored_chunk(symbols_of(70000, 1))]

    def damaged(batch: RansBatch) -> tuple[torch.Tensor, torch.Tensor]:
        errors = torch.tensor([0, 0, 1], dtype=torch.int32)
        return torch.empty(batch.symbols, dtype=torch.uint8), errors

    monkeypatch.setattr(entropy, "rans_decode", damaged)
    with pytest.raises(BundleCorruptError, match="are damaged: block 1 of chunk 1"):
        decode_rans(chunks, HOST)


UNDER_THE_INTERPRETER = """
import sys
import torch

sys.path.insert(0, sys.argv[1])
from test_entropy import stored_chunk, symbols_of
from tersor.models.entropy import decode_rans

parts = [symbols_of(size, symbol_bytes=2, seed=size) for size in (1, 33, 400)]
decoded = decode_rans([stored_chunk(part) for part in parts], torch.device("cpu"))
for part, tensor in zip(parts, decoded, strict=True):
    assert tensor.dtype == torch.uint16
    assert (tensor.numpy() == part).all()
print("decoded")
"""


def test_the_kernel_decodes_stored_chunks() -> None:
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", UNDER_THE_INTERPRETER, folder],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "decoded\n", done.stderr[-3000:]
