"""The w8a8 kernels under Triton's interpreter, against their definition: bit for bit.

Sums of integers are exact and float32 scaling is done in one order, so the tolerance is none. Gated
results go through another sigmoid: they are compared to 1e-6, a few ulp of float32.
"""

from __future__ import annotations

import pytest
import torch
from kernel_cases import Int8Case, activations
from poison import poisoned_memory

from tersor.kernels.errors import LayoutError
from tersor.kernels.gated import ACTIVATIONS, gated
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finish_product
from tersor.kernels.int8.packing import pack
from tersor.kernels.int8.w8a8 import reference, triton
from tersor.kernels.tuning import Cut, trying

ODD_SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63)]
SPLIT_SHAPE = (6, 2100)  # seventeen steps of codes: K is split


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 129, 1024, 2100])
def test_activations_are_quantized_as_defined(k: int, dtype: torch.dtype) -> None:
    x = activations(5, k, dtype)
    x[1] = 0
    x[2] *= 1e-35
    x[3] *= 1e30
    columns = -(-k // 32) * 32
    with poisoned_memory():
        codes, scales = triton.quantize_tokens(x, columns)
    expected = reference.quantize_tokens(x, columns)
    assert torch.equal(codes, expected[0])
    assert torch.equal(scales, expected[1])


@pytest.mark.parametrize("m", [1, 9])
@pytest.mark.parametrize(("n", "k"), [*ODD_SHAPES, SPLIT_SHAPE])
def test_matmul(n: int, k: int, m: int) -> None:
    case = Int8Case.random(n, k)
    x, codes = activations(m, k), pack(case.codes)
    bias = activations(1, n, seed=3)[0] if m == 1 else None
    with poisoned_memory():
        y = triton.matmul(x, codes, case.scales, bias)
    assert torch.equal(y, reference.matmul(x, codes, case.scales, bias))


@pytest.mark.parametrize("n", [10, 16])  # for the skinny kernel again, and for _int_mm
def test_many_rows(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "SUMS", 1)  # as many parts as there may be
    case = Int8Case.random(n, 40)
    x, codes = activations(GEMM_MIN_ROWS + 2, 40), pack(case.codes)
    bias = activations(1, n, seed=3)[0]
    with poisoned_memory():
        y = triton.matmul(x, codes, case.scales, bias)
    assert torch.equal(y, reference.matmul(x, codes, case.scales, bias))
    with poisoned_memory():
        alone = triton.matmul(x[:1], codes, case.scales, bias)
    assert torch.equal(alone, y[:1])


@pytest.mark.parametrize("finish", [Finish.PARTIALS, *map(Finish, ACTIVATIONS)])
@pytest.mark.parametrize(("n", "k", "m"), [(66, 40, 2), (*SPLIT_SHAPE, 2)])
def test_finishes(n: int, k: int, m: int, finish: Finish) -> None:
    case = Int8Case.random(n, k)
    # Small: exp overflows into a warning in the interpreter, not on a GPU.
    x, codes, bias = activations(m, k) * 2**-14, pack(case.codes), activations(1, n, seed=3)[0]
    y = reference.matmul(x, codes, case.scales, bias)
    with poisoned_memory():
        result = triton.matmul(x, codes, case.scales, bias, finish)
    if finish is Finish.PARTIALS:
        assert torch.equal(result, y[None])
    else:
        torch.testing.assert_close(result, gated(y, finish.gate), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("bn", "splits"), [(16, 3), (32, 1), (128, 2)])
@pytest.mark.parametrize("finish", [Finish.SUM, Finish.SILU])
def test_every_cut_computes_the_same(bn: int, splits: int, finish: Finish) -> None:
    case = Int8Case.random(70, 700)
    x = activations(2, 700) * 2**-14
    y = reference.matmul(x, pack(case.codes), case.scales)
    expected = finish_product(y, finish)
    cut = Cut(bn=bn, num_warps=1, num_stages=2, splits=splits)
    with trying(cut), poisoned_memory():
        result = triton.matmul(x, pack(case.codes), case.scales, None, finish)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_an_empty_batch() -> None:
    case = Int8Case.random(6, 40)
    y = triton.matmul(activations(0, 40), pack(case.codes), case.scales, None)
    assert y.shape == (0, 6)


def test_the_launcher_names_the_argument_that_does_not_fit() -> None:
    case = Int8Case.random(5, 40)
    x, codes = activations(2, 40), pack(case.codes)
    with pytest.raises(LayoutError, match=r"`codes` has shape \[5, 40\], expected \[any, 64\]"):
        triton.matmul(x, case.codes, case.scales, None)
    with pytest.raises(LayoutError, match=r"`scales` has dtype torch\.float32"):
        triton.matmul(x, codes, case.scales.float(), None)
    with pytest.raises(LayoutError, match=r"`bias` has shape \[4\], expected \[5\]"):
        triton.matmul(x, codes, case.scales, torch.zeros(4))
