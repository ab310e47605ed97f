"""The kernels on a CUDA device, against float64."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import TOLERANCES, Int4Case, Int8Case, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.dense import DenseLayout
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.int4 import Int4Layout
from tersor.kernels.int4.words import WordsForm
from tersor.kernels.int8 import Int8Layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (130, 2100), (4096, 4096)]
BATCHES = [1, 2, 3, 8, 17, GEMM_MIN_ROWS - 1, GEMM_MIN_ROWS, 200]
DTYPES = [torch.bfloat16, torch.float32]


def _int8(case: Int8Case) -> Int8Layout:
    n, k = case.codes.shape
    return Int8Layout.from_planes(case.planes, (n, k), torch.bfloat16, {}, GPU)


def _int4(case: Int4Case) -> Int4Layout:
    n, k = case.codes.shape
    return Int4Layout.from_planes(case.planes, (n, k), torch.bfloat16, case.params, GPU)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_int8_matmul(n: int, k: int, dtype: torch.dtype) -> None:
    case = Int8Case.random(n, k)
    layout, weight, magnitude = _int8(case), case.weight.to(GPU), case.magnitude.to(GPU)
    for m in BATCHES:
        x = activations(m, k, dtype).to(GPU)
        bias = activations(1, n, seed=3)[0].to(GPU) if m % 2 else None
        with poisoned_memory():
            y = layout.matmul(x, bias)
        assert y.dtype == dtype
        assert_matmul_close(y, x, weight, magnitude, bias, TOLERANCES["bf16"])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 16, 32, 48, 64, 128, 40])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_int4_matmul(n: int, k: int, group: int, symmetric: bool) -> None:
    case = Int4Case.random(n, k, group=group, symmetric=symmetric)
    layout, weight, magnitude = _int4(case), case.weight.to(GPU), case.magnitude.to(GPU)
    for index, m in enumerate(BATCHES):
        dtype = DTYPES[index % 3 == 0]  # each with a bias and without, in both tiles
        x = activations(m, k, dtype).to(GPU)
        bias = activations(1, n, seed=3)[0].to(GPU) if m % 2 else None
        with poisoned_memory():
            y = layout.matmul(x, bias)
        assert y.dtype == dtype
        # Decoding for cuBLAS rounds weights to bf16; the kernel does not.
        assert_matmul_close(y, x, weight, magnitude, bias, TOLERANCES["bf16"])


@pytest.mark.parametrize("group", [0, 32, 128])
def test_rows_do_not_depend_on_the_batch(group: int) -> None:
    for layout in (
        _int8(Int8Case.random(130, 4096)),
        _int4(Int4Case.random(130, 4096, group=group, symmetric=False)),
    ):
        x = activations(GEMM_MIN_ROWS - 1, 4096, torch.bfloat16).to(GPU)
        whole = layout.matmul(x)
        for m in (1, 2, 8, 9, 16, 17, 33):
            assert torch.equal(layout.matmul(x[:m]), whole[:m])


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_portable_kernel_makes_the_same_bits(
    symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersor.kernels.int4 import triton as int4

    layout = _int4(Int4Case.random(129, 700, group=64, symmetric=symmetric))
    x = activations(5, 700, torch.bfloat16).to(GPU)
    with_assembly = layout.matmul(x)
    monkeypatch.setattr(int4, "has_inline_asm", lambda _: False)
    assert torch.equal(layout.matmul(x), with_assembly)


def test_int4_decodes_and_looks_up_on_the_gpu() -> None:
    case = Int4Case.random(63, 300, group=64, symmetric=False)
    layout = _int4(case)
    assert isinstance(layout._form, WordsForm)
    assert torch.equal(layout.dense(torch.float32).cpu(), case.weight)
    rows = layout.rows(torch.tensor([62, 0], device=GPU), torch.float32)
    assert torch.equal(rows.cpu(), case.weight[[62, 0]])


def test_matmuls_are_captured_by_a_cuda_graph() -> None:
    layouts = (
        _int8(Int8Case.random(256, 4096)),
        _int4(Int4Case.random(256, 4096, group=128, symmetric=True)),
    )
    x = activations(4, 4096, torch.bfloat16).to(GPU)
    expected = [layout.matmul(x) for layout in layouts]  # compiles the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [layout.matmul(x) for layout in layouts]
    graph.replay()
    for got, want in zip(captured, expected, strict=True):
        assert torch.equal(got, want)


def test_dense_matmul_on_the_gpu() -> None:
    weight = activations(129, 63, torch.bfloat16, seed=2)
    planes = {"values": weight.clone()}
    layout = DenseLayout.from_planes(planes, (129, 63), torch.bfloat16, {}, GPU)
    x = activations(17, 63, torch.bfloat16).to(GPU)
    assert_matmul_close(layout.matmul(x), x, weight, weight.abs(), None, TOLERANCES["bf16"])
