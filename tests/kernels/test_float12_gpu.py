"""The `float12` kernels on a CUDA device: bits against the weights, products against float64."""

from __future__ import annotations

from functools import partial

import float12_cases as cases
import pytest
import torch
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory
from torch import Tensor

from tersor.kernels.float12 import Float12Layout
from tersor.kernels.float12.words import WordsForm
from tersor.kernels.gated import ACTIVATIONS, gated
from tersor.kernels.gemv.config import GEMM_MIN_ROWS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
BF16 = torch.bfloat16
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (130, 2100), (1024, 4096)]
# Of a float32 result: tensor cores cut a sum off instead of rounding it, 256 times for K = 4096.
SUM_TOLERANCE = 5e-5
BATCHES = [1, 2, 3, 8, 17, GEMM_MIN_ROWS - 1, GEMM_MIN_ROWS, 200]


def _form(values: Tensor) -> WordsForm:
    """`values` packed on the GPU, however many of them are escapes."""
    return WordsForm(cases.packed(values.to(GPU)))


def _layout(values: Tensor) -> Float12Layout:
    shape = tuple(values.shape)
    return Float12Layout.from_planes({"values": values}, shape, BF16, {}, GPU)


def test_every_bit_comes_back() -> None:
    weights = [cases.every_pattern(), cases.every_pattern().T.contiguous()]
    for n, k in SHAPES:
        weights += [cases.gaussian(n, k), cases.hostile(n, k)]
    for values in weights:
        with poisoned_memory():
            form = _form(values)
            assert cases.same_bits(form.dense().cpu(), values)
            assert cases.same_bits(_layout(values).dense().cpu(), values)
            indices = torch.tensor([[values.shape[0] - 1, 0], [0, 0]])
            rows = form.rows(indices.to(GPU), BF16)
        assert cases.same_bits(rows.cpu(), values[indices])


def test_packing_does_not_depend_on_the_device() -> None:
    values = cases.gaussian(130, 2100)
    here, there = cases.packed(values), cases.packed(values.to(GPU))
    for name in ("words", "bases", "offsets", "columns", "values"):
        got, want = getattr(there, name).cpu(), getattr(here, name)
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul(n: int, k: int, dtype: torch.dtype) -> None:
    values = cases.gaussian(n, k)
    form = _form(values)
    tolerance = SUM_TOLERANCE if dtype == torch.float32 else TOLERANCES["bf16"]
    for m in BATCHES:
        x = activations(m, k, dtype).to(GPU)
        bias = activations(1, n, seed=3)[0].to(GPU) if m % 2 else None
        with poisoned_memory():
            y = form.matmul(x, bias)
        assert y.dtype == dtype
        # cuBLAS rounds its product to bf16, whatever x is.
        bound = tolerance if m < GEMM_MIN_ROWS else TOLERANCES["bf16"]
        assert_matmul_close(y, x, values, values.double().abs(), bias, bound)


@pytest.mark.parametrize("exponent", [-126, -60, 60, 100])
def test_weights_of_any_size(exponent: int) -> None:
    values = (cases.gaussian(70, 512).sign().double() * 2.0**exponent).bfloat16()
    x = activations(2, 512).to(GPU)
    y = _form(values).matmul(x)
    assert_matmul_close(y, x, values, values.double().abs(), None, SUM_TOLERANCE)


def test_infinite_weights_reach_their_rows_alone() -> None:
    values = torch.ones(130, 256).bfloat16()
    values[3, 5], values[4, 6], values[129, 0] = float("nan"), float("inf"), -float("inf")
    y = _form(values).matmul(torch.ones(2, 256, device=GPU))
    expected = torch.ones(2, 256) @ values.float().T
    torch.testing.assert_close(y.cpu(), expected, equal_nan=True)


@pytest.mark.parametrize(("n", "k"), [(130, 4096), (130, 2100)])
def test_rows_do_not_depend_on_the_batch(n: int, k: int) -> None:
    form = _form(cases.gaussian(n, k))
    x = activations(GEMM_MIN_ROWS - 1, k, BF16).to(GPU)
    whole = form.matmul(x)
    for m in (1, 2, 8, 9, 16, 17, 33):
        assert torch.equal(form.matmul(x[:m]), whole[:m])
    assert torch.equal(form.matmul(x), whole)


@pytest.mark.parametrize(("n", "k"), [(6, 40), (130, 96), (130, 4096)])
def test_finishes(n: int, k: int) -> None:
    form = _form(cases.gaussian(n, k))
    x, bias = activations(3, k).to(GPU) * 2**-14, activations(1, n, seed=3)[0].to(GPU)
    whole = form.matmul(x, bias)
    # Outliers of 2^17 make terms of about 8, which may cancel.
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    close(form.partials(x, bias).sum(0), whole)
    for activation in ACTIVATIONS:
        close(form.gated(x, bias, activation), gated(whole, activation))


def test_the_portable_kernel_makes_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.kernels.float12 import triton as float12

    form = _form(cases.gaussian(129, 700))
    x = activations(5, 700, BF16).to(GPU)
    with_assembly = form.matmul(x)
    monkeypatch.setattr(float12, "has_inline_asm", lambda _: False)
    assert torch.equal(form.matmul(x), with_assembly)


def test_a_weight_of_escapes_is_held_dense() -> None:
    values = cases.hostile(64, 256)
    layout = _layout(values)
    assert layout.resident_bytes == values.nbytes
    usual = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert _layout(usual).resident_bytes < 0.8 * usual.nbytes


def test_matmuls_and_lookups_are_captured_by_a_cuda_graph() -> None:
    form = _form(cases.gaussian(256, 4096))
    x = activations(4, 4096, BF16).to(GPU)
    many = activations(GEMM_MIN_ROWS, 4096, BF16).to(GPU)
    tokens = torch.tensor([0, 255], device=GPU)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        return form.matmul(x), form.matmul(many), form.rows(tokens, BF16)

    expected = run()  # compiles the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    for got, want in zip(captured, expected, strict=True):
        assert torch.equal(got, want)
