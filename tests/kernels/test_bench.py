"""The library behind `tersor bench kernels`: what it would measure, with the clock replaced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest
import torch
import triton
from torch import Tensor

from tersor.kernels.bench import products, search, timing, tune
from tersor.kernels.bench.kinds import Weights, as_they_are, in_every_layout, kind_of
from tersor.kernels.bench.paths import ONLY, PLAIN, choices, measure_paths
from tersor.kernels.bench.products import copies_of, measure_products
from tersor.kernels.bench.samples import Sample, random_plane, samples
from tersor.kernels.bench.search import best_first, candidates
from tersor.kernels.crossover import Path as CpuPath
from tersor.kernels.errors import LayoutError, TuningError
from tersor.kernels.gemv import config
from tersor.kernels.gemv.config import tile_config
from tersor.kernels.layout import Layout, Params, PlaneSpec, layouts
from tersor.kernels.tuning import Cut, Gpu, Shape, current_trial, store
from tersor.kernels.tuning.store import read_table

CPU = torch.device("cpu")
GPU = Gpu(name="NVIDIA H200", compute_capability=(9, 0), processors=132, triton="3.6.0")
BEST = Cut(bn=32, num_warps=1, num_stages=4, splits=2)


@pytest.mark.parametrize("sample", samples(), ids=lambda sample: sample.label)
def test_every_sample_makes_a_weight_that_multiplies(sample: Sample) -> None:
    layout = sample.build(96, 256, CPU)
    assert (layout.name, layout.shape) == (sample.layout, (96, 256))
    assert bool(layout.matmul(torch.randn(3, 256)).isfinite().all())


def test_every_layout_has_a_sample() -> None:
    assert {sample.layout for sample in samples()} == set(layouts())


def test_a_plane_of_an_unknown_dtype_has_no_sample() -> None:
    with pytest.raises(LayoutError, match="dtype i64 has no random sample"):
        random_plane(PlaneSpec("i64", (2, 2)), (2, 2), CPU)


def test_paths_on_a_cpu_and_what_is_chosen() -> None:
    kinds = [Sample(label="dense", layout="dense"), Sample(label="int8", layout="int8")]
    (rows,) = measure_paths(kinds, (64, 96), (40,), rounds=2)
    assert [(row.form, row.path, row.taken) for row in rows] == [
        ("fp32", PLAIN, False),
        ("bf16", PLAIN, False),
        ("dense", ONLY, True),
        ("int8", CpuPath.PACKED, False),
        ("int8", CpuPath.DECODED, True),
    ]
    (choice,) = choices(rows)
    assert (choice.form, choice.batch, choice.taken) == ("int8", 40, "decoded")
    assert choice.loss >= 0
    assert (choice.loss == 0) == (choice.fastest == "decoded")


class Pretended(Layout):
    """A layout whose products ask for a cut, and for some cuts go wrong."""

    name = "pretended"

    def __init__(self) -> None:
        self.shape = (4096, 512)
        self.dtype = torch.float32
        self.device = CPU
        self.weight = torch.randn(4, 512)

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        return {}

    @classmethod
    def from_planes(
        cls,
        planes: Mapping[str, Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        params: Params,
        device: torch.device,
    ) -> Self:
        return cls()

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.weight

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, k = self.shape
        cut = tile_config(
            "pretended", m=x.shape[0], n=n, k=k, steps=16, bms=(8, 16, 32), device=self.device
        )
        if cut.num_warps == 4 and cut.bn == 128:
            raise triton.TritonError("out of resource: shared memory")
        # Row by row: a matmul of torch would round a row differently for different batches.
        y = (x.double()[:, None] * self.weight.double()).sum(dim=-1).float()
        if cut.num_stages == 2:  # a race
            y = y + 100.0
        if cut.num_warps == 4 and x.shape[0] > 8:  # another instruction for larger tiles
            y = y * (1 + 2**-20)
        return y

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    @property
    def resident_bytes(self) -> int:
        return 1 << 28


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Cut]:
    """Times that grow with the distance from BEST; those that go wrong would be the fastest."""
    timed: list[Cut] = []

    def seconds(launches: timing.Launches, *, replays: int = 0) -> float:
        launches()
        trial = current_trial()
        assert trial is not None
        cut = trial.cut
        assert cut is not None
        timed.append(cut)
        wrong = cut.num_stages == 2 or cut.num_warps == 4
        return 1e-9 if wrong else 1e-3 * (1 + 0.05 * search._distance(cut, BEST))

    monkeypatch.setattr(search, "graph_seconds", seconds)
    for module in (search, config, tune):
        monkeypatch.setattr(module, "gpu_of", lambda _: GPU)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    store._tables.cache_clear()
    config._tile_config.cache_clear()
    return timed


def test_the_best_cut_that_is_right_is_found(pretended: list[Cut]) -> None:
    found = search.search([Pretended()], device=CPU, bandwidth=1e15, seconds=60)
    assert found is not None
    assert (found.cut, found.shapes) == (BEST, (Shape("pretended", 4096, 512),))
    assert found.speedup == pytest.approx(1.35)  # all of the rule's choices differ: 7 steps of 5 %
    assert found.tried == found.of


def test_a_search_ends_with_its_time_or_at_the_roofline(pretended: list[Cut]) -> None:
    none = search.search([Pretended()], device=CPU, bandwidth=1e15, seconds=-1)
    assert none is not None
    assert (none.tried, none.speedup) == (1, 1.0)
    near = search.search([Pretended()], device=CPU, bandwidth=(1 << 28) / 1.15e-3, seconds=60)
    assert near is not None
    assert near.tried < near.of / 2


def test_a_layout_that_asks_for_no_cut_is_left_alone(pretended: list[Cut]) -> None:
    dense = Sample(label="dense", layout="dense").build(64, 64, CPU)
    assert search.search([dense], device=CPU, bandwidth=1.0, seconds=1) is None


def test_near_candidates_come_first() -> None:
    grid = candidates(4096, 64, 132)
    start = Cut(bn=64, num_warps=2, num_stages=3, splits=8)
    tried: list[Cut] = []

    def score(cut: Cut) -> float:
        tried.append(cut)
        return math.inf if cut.splits == 4 else 1.0

    best, seconds, count = best_first(start, grid, score, done=lambda: len(tried) == 4)
    assert (best, seconds, count) == (start, 1.0, 4)
    assert [cut.splits for cut in tried] == [8, 2, 4, 8]  # one split would idle half of the GPU
    assert [cut.bn for cut in tried[:3]] == [64] * 3


def test_candidates_fill_the_gpu_where_any_can() -> None:
    for n, steps in ((4096, 32), (28672, 32), (64, 2), (1, 1)):
        grid = candidates(n, steps, 132)
        assert grid
        most = max(-(-n // cut.bn) * cut.splits for cut in grid)
        assert all(-(-n // cut.bn) * cut.splits >= min(66, most) for cut in grid)
        assert all(cut.splits == 1 or steps >= 2 * cut.splits for cut in grid)


def test_tuned_cuts_are_saved_beside_earlier_ones(
    pretended: list[Cut], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tune, "copies_of", lambda sample, size, device: [Pretended()])
    reports: list[tuple[str, str]] = []
    cuts = tune.tune(
        [Weights(shape="o", size=(4096, 512), kinds=(Sample(label="one", layout="pretended"),))],
        device=CPU,
        bandwidth=1e15,
        seconds=60,
        report=lambda shape, form, found: reports.append((shape, form)),
    )
    assert cuts == {Shape("pretended", 4096, 512): BEST}
    assert reports == [("o", "one")]
    path = tmp_path / "t.json"
    earlier = {
        Shape("int8", 8, 8): BEST,
        Shape("pretended", 4096, 512): Cut(bn=16, num_warps=1, num_stages=1, splits=1),
    }
    tune.save_cuts(path, earlier, CPU)
    tune.save_cuts(path, cuts, CPU)
    table = read_table(path, GPU)
    assert table is not None
    assert table.cuts == {**earlier, **cuts}
    path.write_text("{", encoding="utf-8")
    with pytest.raises(TuningError, match="delete the file"):
        tune.save_cuts(path, cuts, CPU)


def test_a_table_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="is for a GPU, got cpu"):
        tune.save_cuts(tmp_path / "t.json", {}, CPU)


def test_rows_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(launches: timing.Launches, *, replays: int = 0) -> float:
        launches()
        return 2e-6

    monkeypatch.setattr(products, "graph_seconds", seconds)
    weights = [Sample(label="dense", layout="dense").build(64, 100, CPU)] * 2
    (row,) = measure_products(weights, "f", "o", (64, 100), [3], device=CPU, bandwidth=25.6e9)
    assert (row.form, row.shape, row.batch) == ("f", "o", 3)
    assert (row.microseconds, row.weight_gb_per_second) == (1.0, 12.8)
    assert row.share_of_copy_bandwidth == 0.5


def test_weights_that_differ_in_a_count_are_of_one_kind() -> None:
    kinds = as_they_are(
        [
            ("int4", {"group": 0, "outliers": 41, "symmetric": True}, (64, 64)),
            ("int4", {"group": 0, "outliers": 40, "symmetric": True}, (64, 64)),
            ("int8", {}, (64, 64)),
            ("int8", {}, (128, 64)),
        ]
    )
    assert [(weights.shape, weights.size) for weights in kinds] == [
        ("128 x 64", (128, 64)),
        ("64 x 64", (64, 64)),
    ]
    assert [kind.label for kind in kinds[1].kinds] == [
        "int4 (group 0, outliers 0.01, symmetric True)",
        "int8",
    ]
    assert kinds[1].kinds[0].params == {"group": 0, "outliers": 0.01, "symmetric": True}
    assert kind_of("dense", {}, (1, 1)).label == "dense"
    assert kind_of("bitmap", {"nonzeros": 1031}, (64, 64)).params == {"nonzeros": 0.25}
    assert kind_of("int4", {"outliers": 21}, (64, 64)).params == {"outliers": 0.005}


def test_only_the_largest_shapes_are_measured() -> None:
    kinds = as_they_are(("int8", {}, (n, 1)) for n in range(1, 40))
    assert [weights.size[0] for weights in kinds] == list(range(39, 23, -1))
    (square,) = in_every_layout({"s": (4, 4)})
    assert square.kinds == samples()


def test_a_size_that_a_layout_does_not_take_has_no_copies() -> None:
    bad = Sample(label="bad", layout="int4", params={"group": -1, "symmetric": True})
    assert not copies_of(bad, (64, 64), CPU)
