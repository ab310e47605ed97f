"""Writing: deterministic, deduplicated, atomic, and strict about what it is given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundles import (
    add,
    decoder_program,
    graph_program,
    read_all,
    symbols,
    weights,
    write_tiny,
    writer,
)

from tersor.bundle import limits
from tersor.bundle.atomic_file import AtomicFile
from tersor.bundle.encoding import block_target
from tersor.bundle.errors import BundleLimitError, BundleNotFoundError, BundleWriteError
from tersor.bundle.manifest import SourceSlice
from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify
from tersor.bundle.writer import PlaneData


def test_the_same_input_gives_the_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.tersor" for n in range(3)]
    for path, threads in zip(paths, (1, 2, 4), strict=True):
        with writer(path, threads=threads) as target:
            add(target, "embedding", "bf16", weights((4000, 700)))
            add(target, "codes", "u4", symbols("u4", (3000, 700)))
            target.commit()
    first, *others = (path.read_bytes() for path in paths)
    assert all(other == first for other in others)


def test_equal_planes_are_stored_once(tmp_path: Path) -> None:
    manifest = write_tiny(tmp_path / "x.tersor")
    embedding, head = manifest.tensor("embedding"), manifest.tensor("head")
    assert embedding.planes == head.planes
    unequal = tmp_path / "y.tersor"
    array = symbols("u8", (4, 4))
    with writer(unequal) as target:
        # The same bytes in another shape or dtype are another plane.
        add(target, "a", "u8", array)
        add(target, "b", "u8", array.reshape(2, 8))
        add(target, "c", "i8", array.view(np.int8))
        written = target.commit()
    offsets = [entry.planes[0].streams[0].chunks[0].offset for entry in written.tensors]
    # … made of the same chunk.
    assert offsets == [4096, 4096, 4096]
    assert verify(unequal).ok
    for entry in written.tensors:
        assert read_all(unequal)[f"{entry.name}/values"] == array.tobytes()


def test_small_planes_follow_without_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MIN_ALIGNED_PLANE_BYTES", 1 << 16)
    path = tmp_path / "x.tersor"
    with writer(path, codec="raw") as target:
        for name, rows in (("norm", 3), ("bias", 5), ("matrix", 1 << 12), ("last", 1)):
            add(target, name, "u8", symbols("u8", (rows, 16), seed=rows))
        written = target.commit()
    offsets = [entry.planes[0].streams[0].chunks[0].offset for entry in written.tensors]
    assert offsets == [64, 64 + 48, 4096, 4096 + (1 << 16)]
    assert verify(path).ok


def test_planes_begin_at_page_boundaries(tmp_path: Path) -> None:
    manifest = write_tiny(tmp_path / "x.tersor")
    for entry in manifest.tensors:
        for plane in entry.planes:
            if plane.raw_bytes:
                assert plane.streams[0].chunks[0].offset % limits.PLANE_ALIGNMENT == 0


def test_u4_planes_take_the_smaller_of_two_filters(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    peaked = np.where(generator.random((512, 4096)) < 0.97, 8, 7).astype(np.uint8)
    flat = generator.integers(0, 16, (512, 4096), dtype=np.uint8)
    with writer(tmp_path / "x.tersor") as target:
        add(target, "peaked", "u4", peaked)
        add(target, "flat", "u4", flat)
        manifest = target.commit()
    (plane,) = manifest.tensor("flat").planes
    assert plane.filter == "nibbles"
    assert plane.stored_bytes == flat.size // 2
    (plane,) = manifest.tensor("peaked").planes
    assert plane.filter == "nibbles"  # pairs: one code word for two symbols
    assert plane.stored_bytes < 0.2 * peaked.size / 2 * 1.05


def test_nothing_appears_before_commit_and_nothing_stays_after_an_abort(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"

    class _StopError(Exception):
        pass

    def interrupted() -> None:
        with writer(path) as target:
            add(target, "a", "bf16", weights((8, 8)))
            assert not path.exists()
            assert len(list(tmp_path.iterdir())) == 1
            raise _StopError

    with pytest.raises(_StopError):
        interrupted()
    with writer(path) as target:
        add(target, "a", "bf16", weights((8, 8)))
    assert list(tmp_path.iterdir()) == []


def test_an_abort_leaves_the_old_bundle_and_commit_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_tiny(path)
    old = path.read_bytes()
    with writer(path) as target:
        add(target, "a", "bf16", weights((8, 8)))
    assert path.read_bytes() == old
    with BundleReader.open(path) as reader:
        write_tiny(path, source={"format": "other"})
        # The open reader keeps the file it opened.
        assert reader.manifest.source == {"format": "test"}
        assert reader.read_plane(reader.manifest.tensors[0].planes[0]).shape == (8, 16)
    assert path.read_bytes() != old
    assert [item.name for item in tmp_path.iterdir()] == ["x.tersor"]


def test_a_killed_writer_leaves_nothing_at_the_target(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tiny_bundles import add, weights, writer\n"
        "target = writer(Path(sys.argv[1]))\n"
        "add(target, 'a', 'bf16', weights((500, 500)))\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    support = Path(__file__).resolve().parent.parent / "support"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(support)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    with pytest.raises(BundleNotFoundError, match="there is no file"):
        BundleReader.open(path)


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_tiny(path)
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_committed_or_failed_writer_refuses_more(tmp_path: Path) -> None:
    with writer(tmp_path / "x.tersor") as target:
        add(target, "a", "bf16", weights((8, 8)))
        with pytest.raises(BundleWriteError, match="'a' was already added"):
            add(target, "a", "bf16", weights((8, 8)))
        target.commit()
        with pytest.raises(BundleWriteError, match="is committed; make a new one"):
            target.commit()
    with writer(tmp_path / "y.tersor") as target:
        with pytest.raises(BundleWriteError):
            add(target, "a", "f32", weights((8, 8)))
        with pytest.raises(BundleWriteError, match="is failed; make a new one"):
            target.commit()
    assert not (tmp_path / "y.tersor").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planes": {}}, "has no planes"),
        (
            {"planes": {"values": PlaneData(dtype="f32", array=np.zeros(4, np.float64))}},
            "array of float64; expected float32",
        ),
        (
            {"planes": {"values": PlaneData(dtype="u4", array=np.full(4, 16, np.uint8))}},
            "a symbol is 16, expected at most 15",
        ),
        (
            {"planes": {"values": PlaneData(dtype="fp3", array=np.zeros(4, np.uint8))}},
            "unknown dtype 'fp3'; expected one of bool, u4",
        ),
        ({"dtype": "float"}, "dtype of tensor 'a' is 'float'; expected one of bool"),
        ({"params": {"x": np.int64(3)}}, "not a JSON value"),
        ({"params": {"x": [1]}}, "x of params of tensor 'a' is not a number, string"),
        ({"shape": (-4,)}, "shape of tensor 'a' is -4"),
        ({"layout": ""}, "layout of tensor 'a' is ''; expected printable"),
        (
            {"sources": [SourceSlice(tensor="old", dtype="f32", shape=(4,), rows=4)]},
            "the source 'old' is already another tensor's",
        ),
        ({"name": ""}, "expected printable characters"),
        ({"group": "a\nb"}, "expected printable characters"),
        ({"aliases": ["b"]}, "has aliases but no source"),
        (
            {"sources": [SourceSlice(tensor="s", dtype="f32", shape=(3,), rows=3)]},
            "cover 3 rows of 4",
        ),
        (
            {"sources": [SourceSlice(tensor="s", dtype="f32", shape=(5,), rows=4)]},
            r"shape \[5\], which does not fill 4 rows of 1",
        ),
    ],
)
def test_a_bad_tensor_is_refused_at_once(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    fields: dict[str, Any] = {
        "name": "a",
        "group": "g",
        "shape": (4,),
        "dtype": "f32",
        "layout": "dense",
        "params": {},
        "planes": {"values": PlaneData(dtype="f32", array=np.zeros(4, np.float32))},
    }
    with writer(tmp_path / "x.tersor") as target:
        add(target, "old", "u8", symbols("u8", (2,)))
        with pytest.raises(BundleWriteError, match=message):
            target.add_tensor(**{**fields, **changes})


@pytest.mark.parametrize(
    ("plane_mib", "block_mib"), [(0, 1), (4, 1), (32, 1), (128, 4), (512, 16), (1 << 18, 16)]
)
def test_large_planes_get_large_blocks(plane_mib: int, block_mib: int) -> None:
    assert block_target(plane_mib << 20) == block_mib << 20


def test_a_row_too_wide_for_a_chunk_is_refused(tmp_path: Path) -> None:
    # One byte seen 2^30 + 1 times: refused before it is encoded.
    wide = np.broadcast_to(np.zeros((), np.uint8), (1, limits.MAX_BLOCK_RAW_BYTES + 1))
    with (
        writer(tmp_path / "x.tersor") as target,
        pytest.raises(BundleLimitError, match="more rows"),
    ):
        target._encode_plane("u8", wide, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"program": decoder_program(num_kv_heads=3)}, "4 heads and 3 key-value heads"),
        ({"codec": "zip"}, "unknown codec 'zip'"),
        ({"source": {"x": float("nan")}}, "source holds nan"),
        ({"recipe": {"x": object()}}, "recipe holds a object"),
    ],
)
def test_a_bad_beginning_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleWriteError, match=message):
        writer(tmp_path / "x.tersor", **changes)
    assert list(tmp_path.iterdir()) == []


def test_what_only_the_whole_shows_is_refused_at_commit(tmp_path: Path) -> None:
    with (
        writer(tmp_path / "x.tersor", program=graph_program()) as target,
        pytest.raises(BundleWriteError, match=r"asset 'graph.json', which the bundle does not"),
    ):
        target.commit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", "a\\b", ".hidden", "a/../b", "a/"])
def test_an_asset_name_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with (
        writer(tmp_path / "x.tersor") as target,
        pytest.raises(BundleWriteError, match="plain relative path"),
    ):
        target.add_asset(name, b"x", "text/plain")


def test_assets_are_named_once_and_not_empty(tmp_path: Path) -> None:
    with writer(tmp_path / "x.tersor") as target:
        target.add_asset("a", b"x", "text/plain")
        with pytest.raises(BundleWriteError, match="'a' was already added"):
            target.add_asset("a", b"y", "text/plain")
        with pytest.raises(BundleWriteError, match="is empty"):
            target.add_asset("b", b"", "text/plain")


def test_a_bad_destination_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleWriteError, match="it is a folder"):
        writer(tmp_path)
    with pytest.raises(BundleWriteError, match="No such file or directory"):
        writer(tmp_path / "missing" / "x.tersor")


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    file = AtomicFile(tmp_path / "x.tersor")
    # The same object on a device that is always full.
    file._file.close()
    file._file = Path("/dev/full").open("wb", 16)  # noqa: SIM115 - closed by discard
    with pytest.raises(BundleWriteError, match=r"x\.tersor: No space left on device"):
        file.append(bytes(64))
    file.discard()
    assert list(tmp_path.iterdir()) == []
