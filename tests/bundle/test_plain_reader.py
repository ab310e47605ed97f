"""A second reader, written by somebody who had only the page of the format, reads what ours does.

Neither knows the other, so that what both make of a file is what `docs/format.md` says of it.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import entropy_reference
import numpy as np
import pytest
from tiny_bundles import noise

from tersor.bundle.codecs import BYTES, CODEC_NAMES, Codec, Lz78Codec, LzwCodec, RansCodec
from tersor.bundle.codecs.entropy.rans import _encode as encode
from tersor.bundle.codecs.entropy.rans_model import RansModel
from tersor.bundle.codecs.entropy.rans_plan import Plan
from tersor.bundle.dtypes import AnyArray
from tersor.bundle.filters import FILTERS
from tersor.bundle.reader import BundleReader
from tersor.bundle.validate import plane_chunks, stored_planes

HERE = Path(__file__).resolve().parent
GOLDEN = sorted((HERE / "golden").glob("*.tersor"))
# Run by its path, as it stands alone.
PLAIN = runpy.run_path(str(HERE / "plain_reader.py"))
read_bundle: Callable[[bytes], tuple[dict[str, dict[str, AnyArray]], dict[str, bytes]]]
read_bundle = PLAIN["read_bundle"]


def test_there_are_golden_files_of_every_version() -> None:
    assert {path.name[:3] for path in GOLDEN} == {"v1-", "v2-"}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_both_readers_decode_the_same(path: Path) -> None:
    tensors, assets = read_bundle(path.read_bytes())
    with BundleReader.open(path, threads=1) as reader:
        entries = reader.manifest.tensors
        assert set(tensors) == {entry.name for entry in entries}
        for entry in entries:
            assert set(tensors[entry.name]) == {plane.name for plane in entry.planes}
            for plane in entry.planes:
                ours, theirs = reader.read_plane(plane), tensors[entry.name][plane.name]
                assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape)
                assert theirs.tobytes() == ours.tobytes()
        assert assets == {
            asset.name: bytes(reader.read_asset(asset.name)) for asset in reader.manifest.assets
        }


def test_golden_files_reach_every_codec_and_filter() -> None:
    codecs: set[str] = set()
    filters: set[str] = set()
    for path in GOLDEN:
        with BundleReader.open(path) as reader:
            for plane in stored_planes(reader.manifest):
                filters.add(plane.filter)
                codecs |= {chunk.codec for chunk, _ in plane_chunks(plane)}
    assert codecs == set(CODEC_NAMES)
    assert filters == set(FILTERS)


def test_a_damaged_plane_is_noticed() -> None:
    path = HERE / "golden" / "v2-rans.tersor"
    data = bytearray(path.read_bytes())
    with BundleReader.open(path) as reader:
        chunk = next(stored_planes(reader.manifest)).streams[0].chunks[0]
    data[chunk.offset + chunk.stored_bytes // 2] ^= 1
    with pytest.raises(ValueError, match="a chunk is damaged"):
        read_bundle(bytes(data))


@pytest.mark.parametrize("codec", [Lz78Codec(), LzwCodec()], ids=lambda codec: codec.name)
def test_both_decode_chunks_that_run_out_of_numbers(codec: Codec) -> None:
    data = noise(200_000, seed=4)
    stored = codec.encoders[0](data, BYTES, None)
    bits = 8 * len(stored)
    assert bits > 65536 * (16 if codec.name == "lzw" else 24)  # more fields than numbers
    raw = PLAIN["decode_phrases"](stored, data.size, codec.name == "lzw")
    assert raw == codec.decode(np.frombuffer(stored, np.uint8), data.size).tobytes()


# Classes of rows and of columns, symbols of a row, symbols: our writer makes 4 x 1 and 4 x 4 only.
CLASSES = [
    (2, 1, 45, 1000),
    (3, 1, 64, 66000),
    (4, 1, 7, 7),
    (5, 1, 33, 700),
    (16, 1, 1, 50),
    (1, 2, 45, 1000),
    (1, 3, 50, 66001),
    (1, 16, 17, 999),
    (2, 3, 96, 1500),
    (3, 5, 9, 301),
    (4, 4, 32, 1024),
    (2, 2, 1000, 77),
]


@pytest.mark.parametrize("symbol_bytes", [1, 2])
@pytest.mark.parametrize(("rows", "columns", "width", "count"), CLASSES)
def test_three_decoders_agree_on_classes(
    rows: int, columns: int, width: int, count: int, symbol_bytes: int
) -> None:
    symbols, plan = classed(rows, columns, width, count, symbol_bytes)
    for shared in (False, True):
        table = plan.model.pack() if shared else None
        stored = encode(symbols, replace(plan, inline=b"" if shared else plan.model.pack()))
        size = count * symbol_bytes
        assert stored[12:16] != bytes(4)
        assert entropy_reference.decode("rans", stored, size, table) == symbols.tobytes()
        assert PLAIN["load_coded"](stored, size, table, PLAIN["decode_rans"]) == symbols.tobytes()
        ours = RansCodec().decode(
            np.frombuffer(stored, np.uint8),
            size,
            None if table is None else np.frombuffer(table, np.uint8),
        )
        assert ours.tobytes() == symbols.tobytes()


def classed(
    rows: int, columns: int, width: int, count: int, symbol_bytes: int
) -> tuple[AnyArray, Plan]:
    """Symbols whose middle moves with their class, one of them in no table; how to code them."""
    row_class = noise(-(-count // width), seed=1) % np.uint8(rows)
    column_class = noise(width, seed=2) % np.uint8(columns)
    place = np.arange(count)
    tables = row_class[place // width] * np.uint8(columns) + column_class[place % width]
    drawn = noise(4 * count, seed=3).reshape(count, 4).sum(axis=1, dtype=np.int64) // 40
    symbols = (drawn + 5 * tables) * (37 if symbol_bytes == 2 else 1)
    counts = np.zeros((rows * columns, 1 << (8 * symbol_bytes)), np.int64)
    np.add.at(counts, (tables, symbols), 100)
    symbols[count // 2] = 200
    counts[:, 200] = 0
    model = RansModel.of_counts(
        counts,
        symbol_bytes,
        row_classes=rows,
        columns=column_class if columns > 1 else np.empty(0, np.uint8),
    )
    plan = Plan(
        model=model,
        inline=b"",
        row_symbols=width,
        row_class=row_class,
        tables=tables,
        patches=1,
        stored_bytes=0.0,
    )
    return symbols.astype(f"<u{symbol_bytes}"), plan
