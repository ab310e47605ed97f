"""The codebook4 kernels on a CUDA device, against float64."""

from __future__ import annotations

import pytest
import torch
from codebook4_case import Codebook4Case
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.codebook4 import Codebook4Layout
from tersor.kernels.codebook4.words import WordsForm
from tersor.kernels.gemv.config import GEMM_MIN_ROWS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (130, 2100), (4096, 4096)]
BATCHES = [1, 2, 3, 8, 17, GEMM_MIN_ROWS - 1, GEMM_MIN_ROWS, 200]
# bf16 has a half ulp of 2^-9 to 2^-8 of a value: once for the table, once for the weights that
# cuBLAS takes, and for the product and its biased sum.
TOLERANCE = TOLERANCES["bf16"] + 2**-8


def _layout(case: Codebook4Case) -> Codebook4Layout:
    n, k = case.planes["codes"].shape
    return Codebook4Layout.from_planes(case.planes, (n, k), torch.bfloat16, case.params, GPU)


# Group, dtype of scales, fp4: every group and every dtype, as each costs compilations.
KINDS = [
    (0, "bf16", False), (0, "e4m3", True), (16, "e4m3", True), (16, "f32", False),
    (32, "e8m0", True), (32, "bf16", False), (40, "bf16", True), (64, "f32", False),
    (128, "bf16", True), (128, "e8m0", False),
]  # fmt: skip


@pytest.mark.parametrize(("group", "scale", "fp4"), KINDS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul(n: int, k: int, group: int, scale: str, fp4: bool) -> None:
    case = Codebook4Case.random(n, k, group=group, scale=scale, fp4=fp4)
    weight = case.weight.to(GPU)
    layout = _layout(case)
    for index, m in enumerate(BATCHES):
        # Each with a bias and without, in both tiles.
        dtype = torch.bfloat16 if index % 3 else torch.float32
        x = activations(m, k, dtype).to(GPU)
        bias = activations(1, n, seed=3)[0].to(GPU) if m % 2 else None
        with poisoned_memory():
            y = layout.matmul(x, bias)
        assert y.dtype == dtype
        assert_matmul_close(y, x, weight, weight.abs(), bias, TOLERANCE)


@pytest.mark.parametrize("group", [0, 16, 32, 64])
def test_rows_do_not_depend_on_the_batch(group: int) -> None:
    layout = _layout(Codebook4Case.random(130, 4096, group=group, scale="bf16"))
    x = activations(GEMM_MIN_ROWS - 1, 4096, torch.bfloat16).to(GPU)
    whole = layout.matmul(x)
    for m in (1, 2, 8, 9, 16, 17, 33):
        assert torch.equal(layout.matmul(x[:m]), whole[:m])


@pytest.mark.parametrize("fp4", [True, False])
def test_the_portable_kernel_makes_the_same_bits(
    fp4: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersor.kernels.codebook4 import triton as codebook4

    layout = _layout(Codebook4Case.random(129, 700, group=32, scale="e8m0", fp4=fp4))
    x = activations(5, 700, torch.bfloat16).to(GPU)
    with_assembly = layout.matmul(x)
    monkeypatch.setattr(codebook4, "has_inline_asm", lambda _: False)
    assert torch.equal(layout.matmul(x), with_assembly)


@pytest.mark.parametrize("scale", ["bf16", "f32", "e8m0", "e4m3"])
def test_decodes_and_looks_up(scale: str) -> None:
    case = Codebook4Case.random(63, 300, group=16, scale=scale)
    layout = _layout(case)
    assert isinstance(layout._form, WordsForm)
    assert torch.equal(layout.dense(torch.float32).cpu(), case.weight)
    rows = layout.rows(torch.tensor([62, 0], device=GPU), torch.float32)
    assert torch.equal(rows.cpu(), case.weight[[62, 0]])


def test_matmul_is_captured_by_a_cuda_graph() -> None:
    layout = _layout(Codebook4Case.random(256, 4096, group=32, scale="e8m0", fp4=True))
    x = activations(4, 4096, torch.bfloat16).to(GPU)
    expected = layout.matmul(x)  # compiles the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layout.matmul(x)
    graph.replay()
    assert torch.equal(captured, expected)
