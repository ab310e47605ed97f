"""`tersor bench kernels` where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import Command

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be measured")


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.cli import bench

    monkeypatch.setattr(bench, "CPU_SHAPES", {"small": (96, 256)})


@NO_GPU
def test_paths_of_a_cpu(tersor: Command, small_shapes: None) -> None:
    done = tersor("bench", "kernels", "--batches", "64,1")
    assert (done.code, done.err) == (0, "")
    head, tables = done.out.split("\n\n")[0], done.out
    assert "activations in fp32" in head
    assert "Which path is taken" in tables
    assert [line.split()[2] for line in tables.splitlines() if " packed " in line][:1] == ["1"]


def test_json_says_which_path_is_taken(tersor: Command, small_shapes: None) -> None:
    done = tersor("bench", "kernels", "--device", "cpu", "--batches", "1", "--json")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    assert document["capability"] == torch.backends.cpu.get_cpu_capability()
    taken = {(row["form"], row["path"]) for row in document["rows"] if row["taken"]}
    assert {("dense", "only"), ("int8", "packed"), ("int4 g128", "packed")} <= taken
    assert {choice["taken"] for choice in document["choices"]} == {"packed"}


def test_the_shapes_and_layouts_of_a_bundle(tersor: Command, bundles: dict[str, Path]) -> None:
    done = tersor(
        "bench", "kernels", "--device", "cpu", "--bundle", bundles["int4"], "--batches", "1",
        "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    rows = json.loads(done.out)["rows"]
    assert {row["form"] for row in rows} >= {"fp32", "bf16", "int4 (group 32, symmetric False)"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tune", "--device", "cpu"), "--tune: searches cuts of GPU kernels, got cpu"),
        (("--batches", "0"), "--batches: got '0', expected numbers from 1 to 4096"),
        (("--batches", "one"), "--batches: got 'one'"),
        (("--device", "tpu"), "--device: got 'tpu', expected cpu, cuda or cuda:N"),
        (("--device", "mps"), "--device: got 'mps', expected cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), "--device: got cuda:99, but torch sees"),
        (("--output", "t.json"), "--output: got t.json without --tune"),
    ],
)
def test_wrong_usage(tersor: Command, arguments: tuple[str, ...], message: str) -> None:
    done = tersor("bench", "kernels", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


def test_a_bundle_that_is_none(tersor: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    path.write_bytes(b"nothing")
    done = tersor("bench", "kernels", "--bundle", path)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
