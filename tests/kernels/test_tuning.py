"""Tuning tables: read strictly, found by device, kernel and shape, and what follows from them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from call_count import calls_of
from hypothesis import given
from hypothesis import strategies as st

from tersor.kernels.errors import TuningError
from tersor.kernels.gemv import config
from tersor.kernels.gemv.config import TileConfig, partial_count, rule, tile_config, weight_cut
from tersor.kernels.gemv.fake import fake_product
from tersor.kernels.tuning import Asked, Cut, Gpu, Shape, TuningTable, store, trying, user_table
from tersor.kernels.tuning.store import check_tables, gpu_slug, read_table, write_table
from tersor.kernels.tuning.table import (
    BNS,
    MAX_BYTES,
    MAX_SPLITS,
    MAX_STAGES,
    NUM_WARPS,
    parse_table,
)

CUDA = torch.device("cuda", 0)
H200 = Gpu(name="NVIDIA H200", compute_capability=(9, 0), processors=132, triton="3.6.0")
MEASURED = Cut(bn=128, num_warps=4, num_stages=2, splits=4)
TABLE = TuningTable(
    device="NVIDIA H200",
    compute_capability=(9, 0),
    triton="3.6.1",
    cuts={
        Shape("int8", 4096, 4096): MEASURED,
        Shape("int8", 4096, 14336): Cut(bn=16, num_warps=1, num_stages=4, splits=8),
        Shape("int4.g128", 4096, 4096): Cut(bn=32, num_warps=2, num_stages=3, splits=1),
    },
)


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user without tables, and nothing remembered before or after."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    store._tables.cache_clear()
    config._tile_config.cache_clear()
    yield
    store._tables.cache_clear()
    config._tile_config.cache_clear()


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setattr(config, "gpu_of", lambda _: H200)
    return H200


def _write(table: TuningTable = TABLE) -> Path:
    path = user_table(table.device)
    assert path is not None
    write_table(path, table)
    return path


def _tile(n: int = 4096, k: int = 4096, m: int = 1, steps: int = 32) -> TileConfig:
    return tile_config("int8", m=m, n=n, k=k, steps=steps, bms=(8, 16, 32), device=CUDA)


def test_a_table_reads_back() -> None:
    assert parse_table(TABLE.to_json(), "memory") == TABLE
    empty = TuningTable(device="x", compute_capability=(8, 0), triton="3.6", cuts={})
    assert parse_table(empty.to_json(), "memory") == empty


CUTS = st.builds(
    Cut,
    bn=st.sampled_from(BNS),
    num_warps=st.sampled_from(NUM_WARPS),
    num_stages=st.integers(1, MAX_STAGES),
    splits=st.integers(1, MAX_SPLITS),
)


@given(
    st.dictionaries(st.builds(Shape, st.sampled_from(["a", "ü.b"]), *[st.integers(1, 9)] * 2), CUTS)
)
def test_every_table_reads_back(cuts: dict[Shape, Cut]) -> None:
    table = TuningTable(device="x", compute_capability=(8, 0), triton="3.6", cuts=cuts)
    assert parse_table(table.to_json(), "memory") == table


def _broken(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(TABLE.to_json())
    change(document)
    return json.dumps(document)


def _entry(document: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = document["kernels"]["int8"][0]
    return entry


BROKEN: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "the text is .*, expected JSON"),
    "deep": ("[" * 100_000, "expected JSON"),
    "a list": ("[]", r"the document is \[\], expected an object with exactly the keys version"),
    "twice": ('{"a": 1, "a": 2}', "expected every key once"),
    "unknown key": (_broken(lambda d: d.update(more=1)), "expected an object with exactly"),
    "missing key": (_broken(lambda d: d.pop("triton")), "expected an object with exactly"),
    "newer": (
        _broken(lambda d: d.update(version=2)),
        "version is 2, expected an integer from 1 to 1",
    ),
    "capability": (_broken(lambda d: d.update(compute_capability=[9])), "compute_capability is"),
    "a long name": (_broken(lambda d: d.update(device="x" * 129)), "device is"),
    "an odd name": (_broken(lambda d: d.update(device="a\x1b[0m")), "device is"),
    "kernels": (_broken(lambda d: d.update(kernels=[])), r"kernels is \[\]"),
    "entries": (_broken(lambda d: d["kernels"].update(int8=3)), "kernels.int8 is 3"),
    "same shape": (
        _broken(lambda d: d["kernels"]["int8"].append(_entry(d))),
        r"kernels.int8\[2\] is \[4096, 4096\], expected each n, k once",
    ),
    "bn": (
        _broken(lambda d: _entry(d).update(bn=48)),
        r"kernels.int8\[0\].bn is 48, expected one of 16, 32, 64, 128, 256",
    ),
    "a boolean": (_broken(lambda d: _entry(d).update(splits=True)), "splits is True"),
    "a float": (_broken(lambda d: _entry(d).update(num_warps=2.0)), "num_warps is 2.0"),
    "huge": (_broken(lambda d: _entry(d).update(num_stages=10**30)), "num_stages is 1000"),
    "negative": (_broken(lambda d: _entry(d).update(n=-1)), r"\.n is -1"),
    "no splits": (_broken(lambda d: _entry(d).update(splits=0)), "from 1 to 64"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_refused(name: str) -> None:
    text, message = BROKEN[name]
    with pytest.raises(TuningError, match=message) as caught:
        parse_table(text, "/some/table.json")
    assert str(caught.value).startswith("tuning table /some/table.json: ")
    assert "tersor bench kernels --tune" in str(caught.value)
    assert len(str(caught.value)) < 400


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_table_or_an_error(text: str) -> None:
    with pytest.raises(TuningError):
        parse_table(text, "memory")


def test_files_that_cannot_be_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    assert read_table(path, H200) is None
    path.write_bytes(b"\xff")
    with pytest.raises(TuningError, match="cannot be read: it is not UTF-8"):
        read_table(path, H200)
    path.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(TuningError, match="more than 1048576 bytes"):
        read_table(path, H200)
    with pytest.raises(TuningError, match="cannot be read: Is a directory"):
        read_table(tmp_path, H200)


def test_where_a_user_s_table_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_table("NVIDIA H200") == tmp_path / "data/tersor/kernels/nvidia-h200.json"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_table("a/../b") == tmp_path / ".local/share/tersor/kernels/a-b.json"
    assert gpu_slug("...") == "gpu"
    with mock.patch.object(Path, "home", side_effect=RuntimeError):
        assert user_table("x") is None


def test_without_a_table_the_rule_decides(h200: Gpu) -> None:
    assert _tile() == TileConfig(
        bm=8, bn=64, splits=8, steps_per_split=4, num_warps=2, num_stages=3
    )


def test_a_measured_shape_takes_its_cut_at_every_batch(h200: Gpu) -> None:
    _write()
    for m, bm in ((1, 8), (8, 8), (9, 16), (17, 32), (64, 32)):
        assert _tile(m=m) == TileConfig(
            bm=bm, bn=128, splits=4, steps_per_split=8, num_warps=4, num_stages=2
        )
    assert partial_count("int8", n=4096, k=4096, steps=32, device=CUDA) == 4
    # Nothing near: another shape, another kernel.
    assert weight_cut("int8", n=4096, k=4160, steps=32, device=CUDA).bn == config.BN
    assert weight_cut("int4.row", n=4096, k=4096, steps=16, device=CUDA).bn == config.BN


def test_a_launch_reads_no_file_and_calls_next_to_nothing(h200: Gpu) -> None:
    _write()
    first = _tile()
    with mock.patch.object(store, "read_table", side_effect=AssertionError):
        assert _tile() is first
        assert _tile(m=2, n=64) != first  # a new shape asks the tables in memory
    # Profiler events of the call, the look-up, and whether this thread tries a cut.
    assert calls_of(_tile) <= 10


def test_splits_never_outnumber_the_steps(h200: Gpu) -> None:
    _write()
    assert _tile(steps=3).splits == 3
    assert _tile(steps=5) == TileConfig(
        bm=8, bn=128, splits=3, steps_per_split=2, num_warps=4, num_stages=2
    )


def test_the_user_s_table_comes_before_the_shipped(
    h200: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHIPPED", tmp_path)
    other = Cut(bn=16, num_warps=1, num_stages=2, splits=1)
    shipped = {Shape("int8", 4096, 4096): other, Shape("int8", 8, 8): other}
    write_table(
        tmp_path / "nvidia-h200.json",
        TuningTable(device="NVIDIA H200", compute_capability=(9, 0), triton="3.6.0", cuts=shipped),
    )
    _write()
    assert weight_cut("int8", n=4096, k=4096, steps=32, device=CUDA) == MEASURED
    assert weight_cut("int8", n=8, k=8, steps=1, device=CUDA) == other


def test_a_broken_table_of_the_user_refuses_every_launch(h200: Gpu) -> None:
    path = _write()
    path.write_text(TABLE.to_json().replace("128", "129"), encoding="utf-8")
    for _ in range(2):
        with pytest.raises(TuningError, match=r"nvidia-h200.json: kernels.*\.bn is 129"):
            _tile()


def test_a_broken_table_is_found_before_anything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "gpu_of", lambda device: H200 if device == CUDA else None)
    check_tables(CUDA)
    _write().write_text("[]", encoding="utf-8")
    store._tables.cache_clear()
    check_tables(torch.device("cpu"))
    with pytest.raises(TuningError, match="expected an object"):
        check_tables(CUDA)


def test_a_table_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_table(path, TABLE)
    gpu = Gpu(name="NVIDIA A100", compute_capability=(8, 0), processors=108, triton="3.6.0")
    with pytest.raises(TuningError, match=r"is for 'NVIDIA H200' \(9, 0\), expected 'NVIDIA A100'"):
        read_table(path, gpu)


def test_a_table_of_another_triton_is_not_used_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.json"
    write_table(path, TABLE)
    newer = Gpu(name="NVIDIA H200", compute_capability=(9, 0), processors=132, triton="3.7.0")
    with caplog.at_level(logging.WARNING):
        assert read_table(path, newer) is None
    assert "was measured with Triton 3.6.1 and is not used with 3.7.0" in caplog.text


def test_shipped_tables_are_valid() -> None:
    for path in store.SHIPPED.glob("*.json"):
        table = parse_table(path.read_text(encoding="utf-8"), path.name)
        assert path.stem == gpu_slug(table.device)


def test_larger_gpus_are_given_more_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {}
    for name, major, processors in (("A100", 8, 108), ("H200", 9, 132), ("B200", 10, 148)):
        gpu = Gpu(name=name, compute_capability=(major, 0), processors=processors, triton="3.6.0")
        monkeypatch.setattr(config, "gpu_of", lambda _, gpu=gpu: gpu)
        splits[name] = weight_cut("int8", n=8192, k=8192, steps=64, device=CUDA).splits
    assert splits == {"A100": 2, "H200": 4, "B200": 8}
    assert rule(1, 1, programs=10**6).splits == 1


def test_a_trial_overrides_and_notes_what_asked(h200: Gpu) -> None:
    _write()
    tried = Cut(bn=32, num_warps=1, num_stages=4, splits=2)
    with trying(tried) as trial:
        assert _tile() == TileConfig(
            bm=8, bn=32, splits=2, steps_per_split=16, num_warps=1, num_stages=4
        )
    assert trial.asked == [Asked("int8", 4096, 4096, 32)]
    with trying(None) as trial:
        assert _tile().bn == MEASURED.bn
    assert len(trial.asked) == 1
    assert _tile().bn == MEASURED.bn


def test_fake_products_have_as_many_partials_as_real_ones(h200: Gpu) -> None:
    _write()
    x = torch.empty(3, 4096, dtype=torch.bfloat16, device="meta")
    fake = fake_product(x, "int8", "partials", n=4096, steps=32)
    assert (fake.shape, fake.dtype) == ((4, 3, 4096), torch.float32)


def test_a_cpu_and_a_device_that_is_only_talked_about_are_no_gpus() -> None:
    assert store.gpu_of(torch.device("cpu")) is None
    assert store.gpu_of(torch.device("meta")) is None
