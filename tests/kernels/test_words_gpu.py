"""The kernels of words on a CUDA device, against float64: six bits, outliers, steps per tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import TOLERANCES, Int4Case, Int6Case, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.form import FormLayout
from tersor.kernels.gated import gated
from tersor.kernels.gemv import launch
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.config import tile_config as usual_config
from tersor.kernels.int4 import Int4Layout
from tersor.kernels.int6 import Int6Layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (130, 2100), (4096, 4096)]
BATCHES = [1, 2, 3, 8, 17, GEMM_MIN_ROWS - 1, GEMM_MIN_ROWS, 200]

Case = Int4Case | Int6Case
CASES: dict[str, Callable[[int, int], Case]] = {
    "int4_tensor": lambda n, k: Int4Case.random(n, k, group=0, symmetric=True, per_tensor=True),
    "int4_tensor_zero": lambda n, k: Int4Case.random(
        n, k, group=0, symmetric=False, per_tensor=True, outliers=-(-n * k // 200)
    ),
    "int4_row_outliers": lambda n, k: Int4Case.random(
        n, k, group=0, symmetric=True, outliers=-(-n * k // 200)
    ),
    "int4_g128_zeros_outliers": lambda n, k: Int4Case.random(
        n, k, group=128, symmetric=False, outliers=-(-n * k // 200)
    ),
    "int4_g40_outliers": lambda n, k: Int4Case.random(n, k, group=40, symmetric=True, outliers=1),
    "int4_g256": lambda n, k: Int4Case.random(n, k, group=256, symmetric=True),
    "int6_row": Int6Case.random,
    "int6_tensor_outliers": lambda n, k: Int6Case.random(
        n, k, per_tensor=True, outliers=-(-n * k // 200)
    ),
}
WITH_OUTLIERS = ["int4_row_outliers", "int4_g128_zeros_outliers", "int6_tensor_outliers"]


def layout_of(case: Case) -> FormLayout:
    n, k = case.codes.shape
    cls = Int6Layout if isinstance(case, Int6Case) else Int4Layout
    return cls.from_planes(case.planes, (n, k), torch.bfloat16, case.params, GPU)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul(n: int, k: int, name: str) -> None:
    case = CASES[name](n, k)
    layout, weight, terms = layout_of(case), case.weight.to(GPU), case.magnitude.to(GPU)
    for index, m in enumerate(BATCHES):
        # Each with a bias and without, in both tiles.
        dtype = torch.bfloat16 if index % 3 else torch.float32
        x = activations(m, k, dtype).to(GPU)
        bias = activations(1, n, seed=3)[0].to(GPU) if m % 2 else None
        with poisoned_memory():
            y = layout.matmul(x, bias)
        assert y.dtype == dtype
        # Decoding for cuBLAS rounds weights to bf16, those with an outlier twice.
        magnitude = terms * (2 if m >= GEMM_MIN_ROWS else 1)
        assert_matmul_close(y, x, weight, magnitude, bias, TOLERANCES["bf16"])


@pytest.mark.parametrize("name", ["int6_row", *WITH_OUTLIERS])
def test_rows_do_not_depend_on_the_batch_nor_runs_on_each_other(name: str) -> None:
    layout = layout_of(CASES[name](130, 4096))
    x = activations(GEMM_MIN_ROWS - 1, 4096, torch.bfloat16).to(GPU)
    whole = layout.matmul(x)
    assert torch.equal(layout.matmul(x), whole)
    for m in (1, 2, 8, 9, 16, 17, 33):
        assert torch.equal(layout.matmul(x[:m]), whole[:m])


@pytest.mark.parametrize("name", ["int6_row", "int4_tensor_zero", *WITH_OUTLIERS])
def test_the_portable_kernel_makes_the_same_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersor.kernels.int4 import triton as int4

    layout = layout_of(CASES[name](129, 700))
    x = activations(5, 700, torch.bfloat16).to(GPU)
    with_assembly = layout.matmul(x)
    monkeypatch.setattr(int4, "has_inline_asm", lambda _: False)
    assert torch.equal(layout.matmul(x), with_assembly)


@pytest.mark.parametrize("num_warps", [1, 2, 4])
@pytest.mark.parametrize("bn", [16, 32, 64, 128])
def test_every_cut(bn: int, num_warps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*args: Any, **kwargs: Any) -> Any:
        return replace(usual_config(*args, **kwargs), bn=bn, num_warps=num_warps)

    monkeypatch.setattr(launch, "tile_config", cut)
    for name in ("int6_row", "int4_g256", *WITH_OUTLIERS):
        case = CASES[name](254, 1030)
        layout = layout_of(case)
        for m in (1, 7, 17):
            x = activations(m, 1030, torch.float32).to(GPU)
            y = layout.matmul(x)
            assert_matmul_close(y, x, case.weight, case.magnitude, None, TOLERANCES["bf16"])
            torch.testing.assert_close(layout.partials(x).sum(0), y, rtol=1e-4, atol=1e-2)
            torch.testing.assert_close(
                layout.gated(x, None, "silu"), gated(y, "silu"), rtol=1e-3, atol=1e-1
            )


@pytest.mark.parametrize("name", CASES)
def test_decoding_and_lookup_are_exact(name: str) -> None:
    case = CASES[name](63, 300)
    layout = layout_of(case)
    assert torch.equal(layout.dense(torch.float32).cpu(), case.weight)
    rows = layout.rows(torch.tensor([62, 0], device=GPU), torch.float32)
    assert torch.equal(rows.cpu(), case.weight[[62, 0]])


def test_products_with_outliers_are_captured_by_a_cuda_graph() -> None:
    layouts = [layout_of(CASES[name](256, 4096)) for name in WITH_OUTLIERS]
    for m in (1, 4):
        x = activations(m, 4096, torch.bfloat16).to(GPU)
        expected = [layout.matmul(x) for layout in layouts]  # compiles the kernels
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = [layout.matmul(x) for layout in layouts]
        graph.replay()
        for got, want in zip(captured, expected, strict=True):
            assert torch.equal(got, want)
