"""Cuts that a tuning table may hold, under Triton's interpreter: every one computes the product.

Warps and stages mean nothing to the interpreter; rows a program and splits do.
"""

from __future__ import annotations

import float12_cases
import pytest
import torch
from kernel_cases import TOLERANCES, Int4Case, Int8Case, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.float12 import triton as float12
from tersor.kernels.gated import gated
from tersor.kernels.gemv.finish import Finish
from tersor.kernels.int4 import triton as int4
from tersor.kernels.int4.packing import pack_scales, pack_words
from tersor.kernels.int8 import triton as int8
from tersor.kernels.int8.packing import pack
from tersor.kernels.tuning import Cut, trying
from tersor.kernels.tuning.table import BNS

N, K = 38, 600  # neither of whole tiles nor of whole loop steps


@pytest.mark.parametrize("splits", [1, 64])
@pytest.mark.parametrize("bn", BNS)
def test_int8_in_any_cut(bn: int, splits: int) -> None:
    case = Int8Case.random(N, K)
    x = activations(3, K)
    with trying(Cut(bn=bn, num_warps=1, num_stages=1, splits=splits)) as trial, poisoned_memory():
        y = int8.matmul(x, pack(case.codes), case.scales, None)
        parts = int8.matmul(x, pack(case.codes), case.scales, None, Finish.PARTIALS)
    assert [(asked.kernel, asked.n, asked.k, asked.steps) for asked in trial.asked] == [
        ("int8", N, K, 5)
    ] * 2
    assert parts.shape[0] == {1: 1, 64: 5}[splits]
    assert_matmul_close(y, x, case.weight, case.magnitude, None, TOLERANCES["fp32"])
    torch.testing.assert_close(parts.sum(dim=0), y)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("bn", BNS)
def test_int4_gated_in_any_cut(bn: int, splits: int) -> None:
    case = Int4Case.random(N, K, group=128, symmetric=False)
    assert case.zeros is not None
    scales, zeros = (pack_scales(plane, 128, K) for plane in (case.scales, case.zeros))
    words = pack_words(case.codes, 32)
    x = activations(3, K) / 16  # numpy warns where exp overflows
    with trying(Cut(bn=bn, num_warps=1, num_stages=1, splits=splits)) as trial, poisoned_memory():
        y = int4.matmul(x, words, None, scales, zeros, None, 128, None, Finish.SILU)
    assert {asked.kernel for asked in trial.asked} == {"int4.g128.zeros"}
    expected = gated(x @ case.weight.T, "silu")
    # The gate and the factor are sums of 600 products of up to 136 times a code.
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("finish", [Finish.SUM, Finish.SILU])
@pytest.mark.parametrize(("bn", "splits"), [(16, 3), (128, 1), (256, 2)])
def test_float12_in_any_cut(bn: int, splits: int, finish: Finish) -> None:
    values = activations(N, K, torch.bfloat16, seed=2)
    values[::3, ::97] = 2.0**-40  # escapes
    x = activations(3, K) / 16
    with trying(Cut(bn=bn, num_warps=1, num_stages=1, splits=splits)) as trial, poisoned_memory():
        y = float12.matmul(x, float12_cases.packed(values), None, finish)
    assert {asked.kernel for asked in trial.asked} == {"float12"}
    expected = x @ values.float().T
    expected = gated(expected, finish.gate) if finish.gate else expected
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
