"""The `float12` kernels under Triton's interpreter. Run by ../test_triton_interpreted.py."""

from __future__ import annotations

from dataclasses import replace

import float12_cases as cases
import pytest
import torch
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.errors import LayoutError
from tersor.kernels.float12 import triton as float12
from tersor.kernels.float12.packing import Packed
from tersor.kernels.gated import ACTIVATIONS, gated
from tersor.kernels.gemv import launch
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finish_of

ODD_SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63)]
SPLIT_SHAPE = (3, 2100)  # seventeen blocks of words: K is split


def _decode(weight: Packed, start: int, stop: int) -> torch.Tensor:
    rows = slice(start, stop)
    return float12.decode(
        weight.words[rows],
        weight.bases[rows],
        weight.offsets[:-1][rows],
        weight.offsets[1:][rows],
        weight.columns,
        weight.values,
        weight.k,
    )


@pytest.mark.parametrize("m", [1, 2, 3, 8, 17])
@pytest.mark.parametrize(("n", "k"), [*ODD_SHAPES, SPLIT_SHAPE, (65, 256)])
def test_matmul(n: int, k: int, m: int) -> None:
    values = cases.gaussian(n, k)
    x = activations(m, k)
    bias = activations(1, n, seed=3)[0] if m != 2 else None
    with poisoned_memory():
        y = float12.matmul(x, cases.packed(values), bias)
    assert_matmul_close(y, x, values.double(), values.double().abs(), bias, TOLERANCES["fp32"])


def test_many_escapes_and_none() -> None:
    exponents = torch.randint(-30, 30, (70, 100), generator=torch.Generator().manual_seed(0))
    for values in (torch.exp2(exponents).bfloat16(), torch.full((70, 100), -0.75).bfloat16()):
        weight = cases.packed(values)
        assert (weight.columns.numel() > 2000) == bool((values > 0).any())
        x = activations(3, 100)
        with poisoned_memory():
            y = float12.matmul(x, weight, None)
        assert_matmul_close(y, x, values, values.double().abs(), None, TOLERANCES["fp32"])


@pytest.mark.parametrize("exponent", [-126, -60, 60, 100])
def test_weights_of_any_size(exponent: int) -> None:
    values = (cases.gaussian(5, 200).sign().double() * 2.0**exponent).bfloat16()
    x = activations(2, 200)
    with poisoned_memory():
        y = float12.matmul(x, cases.packed(values), None)
    assert_matmul_close(y, x, values, values.double().abs(), None, TOLERANCES["fp32"])


def test_infinite_weights_reach_their_rows_alone() -> None:
    values = torch.ones(20, 40).bfloat16()
    values[3, 5], values[4, 6], values[19, 0] = float("nan"), float("inf"), -float("inf")
    with poisoned_memory():
        y = float12.matmul(torch.ones(2, 40), cases.packed(values), None)
    expected = torch.ones(2, 40) @ values.float().T
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("finish", ["partials", *ACTIVATIONS])
@pytest.mark.parametrize(("n", "k"), [(6, 40), (130, 96), (6, 2100)])
def test_finishes(n: int, k: int, finish: str) -> None:
    weight = cases.packed(cases.gaussian(n, k))
    # Small: exp overflows into a warning in the interpreter, not on a GPU.
    x, bias = activations(3, k) * 2**-14, activations(1, n, seed=3)[0]
    kind = finish_of(finish, n)
    with poisoned_memory():
        whole = float12.matmul(x, weight, bias)
        got = float12.matmul(x, weight, bias, kind)
    if kind is Finish.PARTIALS:
        assert (got.shape[0] > 1) == (k == 2100)
        torch.testing.assert_close(got.sum(0), whole)
    else:
        torch.testing.assert_close(got, gated(whole, finish))


def test_many_rows_decode_the_weight_once_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "DECODED_ELEMENTS", 40 * 33)
    values = cases.gaussian(70, 40)
    x, bias = activations(GEMM_MIN_ROWS, 40), activations(1, 70, seed=3)[0]
    with poisoned_memory():
        y = float12.matmul(x, cases.packed(values), bias)
    assert_matmul_close(y, x, values, values.double().abs(), bias, TOLERANCES["bf16"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_and_results_in_both_dtypes(dtype: torch.dtype) -> None:
    values = cases.gaussian(5, 40)
    x = activations(3, 40, dtype)
    with poisoned_memory():
        y = float12.matmul(x, cases.packed(values), None)
    assert y.dtype == dtype
    # The interpreter cuts a float32 off at bf16 instead of rounding it.
    tolerance = TOLERANCES["fp32"] if dtype == torch.float32 else 2**-7
    assert_matmul_close(y, x, values, values.double().abs(), None, tolerance)
    assert tuple(float12.matmul(x[:0], cases.packed(values), None).shape) == (0, 5)


def test_decode_gives_every_bit() -> None:
    weights = [cases.every_pattern(), cases.every_pattern()[:, ::63].T.contiguous()]
    weights += [cases.hostile(n, k) for n, k in ODD_SHAPES]
    weights += [cases.gaussian(n, k) for n, k in (*ODD_SHAPES, SPLIT_SHAPE)]
    for values in weights:
        n, weight = values.shape[0], cases.packed(values)
        start = n // 2
        with poisoned_memory():
            assert cases.same_bits(_decode(weight, 0, n), values)
            assert cases.same_bits(_decode(weight, start, n), values[start:])
    assert tuple(_decode(weight, 0, 0).shape) == (0, 2100)


def test_launchers_name_the_argument_that_does_not_fit() -> None:
    weight = cases.packed(cases.gaussian(5, 200))
    x = activations(2, 200)
    with pytest.raises(LayoutError, match=r"`x` has shape \[2, 199\], expected \[any, 200\]"):
        float12.matmul(activations(2, 199), weight, None)
    with pytest.raises(LayoutError, match=r"`x` has dtype torch\.float64"):
        float12.matmul(x.double(), weight, None)
    with pytest.raises(LayoutError, match=r"`words` has shape \[5, 48\], expected \[any, 96\]"):
        float12.matmul(x, replace(weight, words=weight.words[:, :48].contiguous()), None)
    with pytest.raises(LayoutError, match=r"`bases` has shape \[4\], expected \[5\]"):
        float12.matmul(x, replace(weight, bases=weight.bases[:4]), None)
    with pytest.raises(LayoutError, match=r"`offsets` has shape \[5\], expected \[6\]"):
        float12.matmul(x, replace(weight, offsets=weight.offsets[:5]), None)
    with pytest.raises(LayoutError, match=r"`values` has dtype torch\.float32"):
        float12.matmul(x, replace(weight, values=weight.values.float()), None)
    with pytest.raises(LayoutError, match=r"`bias` has shape \[4\], expected \[5\]"):
        float12.matmul(x, weight, torch.zeros(4))
