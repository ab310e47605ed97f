"""The fp8 kernels under Triton's interpreter, against their definition.

Tolerances are those of kernel_cases: float32 sums in another order, and bf16 for what cuBLAS gets.
"""

from __future__ import annotations

import pytest
import torch
from fp8_weights import Fp8Case
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.errors import LayoutError
from tersor.kernels.fp8 import reference, triton
from tersor.kernels.gated import gated
from tersor.kernels.gemv import launch
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finish_product
from tersor.kernels.tuning import Cut, trying

BLOCKS = pytest.mark.parametrize("block", [0, 128])
SPLIT_SHAPE = (6, 2100)  # seventeen steps of codes: K is split


@BLOCKS
@pytest.mark.parametrize("m", [1, 9])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 7), (63, 129), (129, 63), SPLIT_SHAPE])
def test_matmul(n: int, k: int, m: int, block: int) -> None:
    case = Fp8Case.random(n, k, block=block)
    x = activations(m, k)
    bias = activations(1, n, seed=3)[0] if m == 1 else None
    with poisoned_memory():
        y = triton.matmul(x, case.packed, case.scales, bias)
    assert_matmul_close(y, x, case.weight, case.weight.abs(), bias, TOLERANCES["fp32"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 129, 2100])
def test_activations_are_rounded_as_defined(k: int, dtype: torch.dtype) -> None:
    x = activations(6, k, dtype)
    x[1] = 0
    x[2] *= 1e-35
    x[3] *= 1e30
    x[4, 0] = 448
    x[5, 0] = 450
    with poisoned_memory():
        rounded = triton.round_tokens(x)
    assert torch.equal(rounded, reference.round_tokens(x))


@BLOCKS
@pytest.mark.parametrize("m", [2, GEMM_MIN_ROWS])
def test_rounded_activations_and_many_rows(
    m: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "DECODED_ELEMENTS", 40 * 140)
    case = Fp8Case.random(150, 140, block=block)
    x, bias = activations(m, 140), activations(1, 150, seed=3)[0]
    with poisoned_memory():
        y = triton.matmul(x, case.packed, case.scales, bias, fp8_activations=True)
    rounded = reference.round_tokens(x)
    tolerance = TOLERANCES["fp32" if m < GEMM_MIN_ROWS else "bf16"]
    assert_matmul_close(y, rounded, case.weight, case.weight.abs(), bias, tolerance)


@BLOCKS
@pytest.mark.parametrize("finish", [Finish.PARTIALS, Finish.SILU])
@pytest.mark.parametrize(("n", "k"), [(260, 40), SPLIT_SHAPE])
def test_finishes(n: int, k: int, finish: Finish, block: int) -> None:
    case = Fp8Case.random(n, k, block=block)
    # Small: exp overflows into a warning in the interpreter, not on a GPU.
    x, bias = activations(2, k) * 2**-14, activations(1, n, seed=3)[0]
    y = reference.matmul(x, case.codes, case.scales, bias)
    with poisoned_memory():
        result = triton.matmul(x, case.packed, case.scales, bias, finish)
    if finish is Finish.PARTIALS:
        assert (result.shape[0] > 1) == (k == SPLIT_SHAPE[1])
        torch.testing.assert_close(result.sum(0), y)
    else:
        torch.testing.assert_close(result, gated(y, finish.gate))


@BLOCKS
@pytest.mark.parametrize(("bn", "splits"), [(16, 3), (32, 1), (128, 2)])
@pytest.mark.parametrize("finish", [Finish.SUM, Finish.SILU])
def test_every_cut_computes_the_same(bn: int, splits: int, finish: Finish, block: int) -> None:
    case = Fp8Case.random(70, 700, block=block)
    x = activations(2, 700) * 2**-14
    y = reference.matmul(x, case.codes, case.scales)
    expected = finish_product(y, finish)
    cut = Cut(bn=bn, num_warps=1, num_stages=2, splits=splits)
    with trying(cut), poisoned_memory():
        result = triton.matmul(x, case.packed, case.scales, None, finish)
    torch.testing.assert_close(result, expected)


def test_the_launcher_names_the_argument_that_does_not_fit() -> None:
    case = Fp8Case.random(5, 40, block=128)
    x = activations(2, 40)
    assert triton.matmul(x[:0], case.packed, case.scales, None).shape == (0, 5)
    with pytest.raises(LayoutError, match=r"`codes` has shape \[5, 40\], expected \[any, 128\]"):
        triton.matmul(x, case.codes.view(torch.uint8), case.scales, None)
    with pytest.raises(LayoutError, match=r"`scales` has shape \[1, 2\], expected \[1, 1\]"):
        triton.matmul(x, case.packed, torch.ones(1, 2), None)
    with pytest.raises(LayoutError, match=r"`bias` has shape \[4\], expected \[5\]"):
        triton.matmul(x, case.packed, case.scales, torch.zeros(4))
