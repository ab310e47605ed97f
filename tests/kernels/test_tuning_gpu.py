"""Tuning on a CUDA device: what is searched is found, written, read and used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tersor.kernels.bench.products import copies_of
from tersor.kernels.bench.samples import Sample
from tersor.kernels.bench.search import candidates, search
from tersor.kernels.bench.timing import copy_bandwidth, graph_seconds
from tersor.kernels.bench.tune import save_cuts
from tersor.kernels.gemv import config
from tersor.kernels.gemv.config import GEMM_MIN_ROWS, weight_cut
from tersor.kernels.tuning import Cut, Shape, gpu_of, store, trying, user_table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
SAMPLES = [
    Sample(label="int8", layout="int8"),
    Sample(label="int4 g128", layout="int4", params={"group": 128, "symmetric": True}),
]


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    store._tables.cache_clear()
    config._tile_config.cache_clear()
    yield
    store._tables.cache_clear()
    config._tile_config.cache_clear()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.label)
def test_a_cut_is_found_written_and_used(sample: Sample) -> None:
    weights = copies_of(sample, (2048, 2048), GPU)
    found = search(weights, device=GPU, bandwidth=copy_bandwidth(GPU), seconds=20)
    assert found is not None
    assert found.speedup >= 0.99
    (shape,) = found.shapes
    before = weights[0].matmul(torch.ones(4, 2048, dtype=torch.bfloat16, device=GPU))
    gpu = gpu_of(GPU)
    assert gpu is not None
    path = user_table(gpu.name)
    assert path is not None
    save_cuts(path, {shape: found.cut}, GPU)
    store._tables.cache_clear()
    config._tile_config.cache_clear()
    assert weight_cut(shape.kernel, n=2048, k=2048, steps=8, device=GPU) == found.cut
    after = weights[0].matmul(torch.ones(4, 2048, dtype=torch.bfloat16, device=GPU))
    torch.testing.assert_close(after, before, rtol=2**-6, atol=1.0)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.label)
def test_rows_keep_their_bits_in_every_cut_of_two_warps(sample: Sample) -> None:
    """Four warps may take another instruction for larger tiles; the search refuses such cuts."""
    layout = sample.build(512, 2048, GPU)
    x = torch.randn(GEMM_MIN_ROWS - 1, 2048, device=GPU).to(torch.bfloat16)
    for cut in candidates(512, 8, 132):
        if cut.num_warps <= 2 and cut.num_stages == 3:
            with trying(cut):
                whole = layout.matmul(x)
                for rows in (1, 9, 17, 33):
                    assert torch.equal(layout.matmul(x[:rows]), whole[:rows]), cut


def test_the_rule_knows_the_size_of_the_device() -> None:
    gpu = gpu_of(GPU)
    assert gpu is not None
    assert gpu.processors == torch.cuda.get_device_properties(GPU).multi_processor_count
    cut = weight_cut("int8", n=4096, k=4096, steps=32, device=GPU)
    assert isinstance(cut, Cut)
    assert store.cut_from_tables(gpu, Shape("no such kernel", 1, 1)) is None


def test_time_in_a_graph_grows_with_the_work() -> None:
    small, large = (torch.empty(size << 20, dtype=torch.uint8, device=GPU) for size in (16, 512))
    assert graph_seconds(large.zero_) > 4 * graph_seconds(small.zero_)
