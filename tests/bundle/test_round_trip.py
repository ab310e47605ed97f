"""What is written is what is read: every dtype, odd shapes, row ranges, any codec."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundles import add, symbols, weights, write_tiny, writer

from tersor.bundle import limits
from tersor.bundle.codecs import AUTO, CODEC_NAMES
from tersor.bundle.dtypes import numpy_dtype
from tersor.bundle.manifest import DTYPES
from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify

SHAPES: list[tuple[int, ...]] = [
    (), (0,), (1,), (7,), (0, 5), (5, 0), (1, 1), (1, 129), (63, 3), (3, 1, 5, 2),
]  # fmt: skip


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_dtype_in_odd_shapes(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.tersor"
    arrays = {f"t{shape}": symbols(dtype, shape, seed=7) for shape in SHAPES}
    with writer(path) as target:
        for name, array in arrays.items():
            add(target, name, dtype, array)
        written = target.commit()
    with BundleReader.open(path) as reader:
        assert reader.manifest == written
        for name, array in arrays.items():
            (plane,) = reader.manifest.tensor(name).planes
            for result in (reader.read_plane(plane), reader.fetch_plane(plane).decode()):
                assert result.dtype == numpy_dtype(dtype)
                assert result.shape == array.shape
                assert result.tobytes() == array.tobytes()
                assert result.flags.writeable
                assert result.flags.c_contiguous
    assert verify(path).ok


@pytest.mark.parametrize("codec", [AUTO, *CODEC_NAMES])
@pytest.mark.parametrize("threads", [1, 2])
def test_many_chunks_with_a_short_last_one(tmp_path: Path, codec: str, threads: int) -> None:
    path = tmp_path / "x.tersor"
    array = weights((1301, 1001))
    with writer(path, codec=codec, threads=threads) as target:
        add(target, "embedding", "bf16", array)
        target.commit()
    with BundleReader.open(path, threads=threads) as reader:
        (plane,) = reader.manifest.tensor("embedding").planes
        assert plane.rows_per_chunk == limits.TARGET_BLOCK_RAW_BYTES // 2002
        assert {len(stream.chunks) for stream in plane.streams} == {3}
        assert np.array_equal(reader.read_plane(plane), array)


def test_a_row_wider_than_a_chunk_is_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    array = weights((2, 600_001))
    with writer(path) as target:
        add(target, "embedding", "bf16", array)
        target.commit()
    with BundleReader.open(path) as reader:
        (plane,) = reader.manifest.tensor("embedding").planes
        assert plane.rows_per_chunk == 1
        assert np.array_equal(reader.read_plane(plane, rows=(1, 2)), array[1:])


@pytest.mark.parametrize("codec", ["auto", "raw"])
@pytest.mark.parametrize("dtype", ["bf16", "i8", "u4", "f64"])
def test_row_ranges(tmp_path: Path, codec: str, dtype: str) -> None:
    path = tmp_path / "x.tersor"
    array = symbols(dtype, (6600, 333))
    with writer(path, codec=codec) as target:
        add(target, "embedding", dtype, array)
        target.commit()
    with BundleReader.open(path) as reader:
        (plane,) = reader.manifest.tensor("embedding").planes
        step = plane.rows_per_chunk
        for rows in [
            (0, 6600), (0, 1), (6599, 6600), (17, 17), (step - 1, step + 1), (step, 2 * step),
            (3, 4990),
        ]:  # fmt: skip
            result = reader.read_plane(plane, rows=rows)
            assert result.tobytes() == array[rows[0] : rows[1]].tobytes()
            assert result.shape == (rows[1] - rows[0], 333)
        part = reader.fetch_plane(plane, rows=(step, step + 1))
        assert 0 < part.stored_bytes < reader.fetch_plane(plane).stored_bytes
        for bad in [(-1, 2), (2, 1), (0, 6601)]:
            with pytest.raises(ValueError, match="not a range within the 6600 rows"):
                reader.read_plane(plane, rows=bad)


def test_a_few_rows_do_not_keep_their_chunk_alive(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    with writer(path) as target:
        add(target, "embedding", "bf16", weights((1000, 100)))
        target.commit()
    with BundleReader.open(path) as reader:
        result = reader.read_plane(reader.manifest.tensors[0].planes[0], rows=(5, 6))
        base = result if result.base is None else result.base
        assert base.nbytes == 200


def test_metadata_survives(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    written = write_tiny(path)
    with BundleReader.open(path) as reader:
        assert reader.manifest == written
        assert reader.file_bytes == path.stat().st_size
        assert [group.name for group in written.groups] == [
            "embedding", "layers.0", "layers.1", "head",
        ]  # fmt: skip
        assert reader.read_asset("licences/LICENSE") == b"free"
        assert written.tensor("layers.0.qkv").params == {"group": 0, "symmetric": True}
        assert written.certificate == {"kl": 0.0}


def test_not_contiguous_and_big_endian_arrays_are_written_right(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    with writer(path) as target:
        add(target, "columns", "i32", base.T)
        add(target, "swapped", "i32", base.astype(">i4"))
        target.commit()
    with BundleReader.open(path) as reader:
        read = {e.name: reader.read_plane(e.planes[0]) for e in reader.manifest.tensors}
    assert np.array_equal(read["columns"], base.T)
    assert np.array_equal(read["swapped"], base)


@given(
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    codec=st.sampled_from([AUTO, *CODEC_NAMES]),
    seed=st.integers(0, 1000),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_any_small_plane(dtype: str, shape: tuple[int, ...], codec: str, seed: int) -> None:
    array = symbols(dtype, shape, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tersor"
        with writer(path, codec=codec) as target:
            add(target, "t", dtype, array)
            target.commit()
        with BundleReader.open(path) as reader:
            assert reader.read_plane(reader.manifest.tensors[0].planes[0]).tobytes() == (
                array.tobytes()
            )
