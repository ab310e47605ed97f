"""The Triton kernels under Triton's interpreter, on the CPU. Run by ../test_triton_interpreted.py.

The interpreter is chosen when a kernel is decorated, so these cases need a process of their own. It
is a tool for correctness: milliseconds a tile, and float32 products, as its bf16 ones are wrong.
"""

from __future__ import annotations

import pytest
import torch
from kernel_cases import TOLERANCES, Int4Case, Int8Case, activations, assert_matmul_close
from poison import poisoned_memory
from torch import Tensor

from tersor.kernels.errors import LayoutError
from tersor.kernels.gated import ACTIVATIONS, gated
from tersor.kernels.gated.triton import gated_sum
from tersor.kernels.gemv import launch
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finish_of
from tersor.kernels.gemv.triton import splitk_sum
from tersor.kernels.int4 import triton as int4
from tersor.kernels.int4.packing import block_words, pack_scales, pack_words
from tersor.kernels.int4.triton_decode import decode_words
from tersor.kernels.int8 import triton as int8
from tersor.kernels.int8.packing import pack

ODD_SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63)]
SPLIT_SHAPE = (3, 2100)  # nine blocks of words and seventeen steps of codes: K is split


Words = tuple[Tensor, None, Tensor, Tensor | None, None, int]


def _words(case: Int4Case) -> Words:
    """A weight as int4.matmul takes it: without high bits and outliers."""
    k = case.codes.shape[1]
    group = case.group or k
    bw = block_words(group, k)
    assert bw is not None
    zeros = None if case.zeros is None else pack_scales(case.zeros, group, k)
    return pack_words(case.codes, bw), None, pack_scales(case.scales, group, k), zeros, None, group


@pytest.mark.parametrize("m", [1, 2, 3, 8, 17])
@pytest.mark.parametrize(("n", "k"), [*ODD_SHAPES, SPLIT_SHAPE, (65, 256)])
def test_int8_matmul(n: int, k: int, m: int) -> None:
    case = Int8Case.random(n, k)
    x = activations(m, k)
    bias = activations(1, n, seed=3)[0] if m != 2 else None
    with poisoned_memory():
        y = int8.matmul(x, pack(case.codes), case.scales, bias)
    assert_matmul_close(y, x, case.weight, case.magnitude, bias, TOLERANCES["fp32"])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 16, 32, 64, 128])
@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (3, 7, 3), (63, 129, 17), (65, 256, 8)])
def test_int4_matmul(n: int, k: int, m: int, group: int, symmetric: bool) -> None:
    case = Int4Case.random(n, k, group=group, symmetric=symmetric)
    x = activations(m, k)
    bias = activations(1, n, seed=3)[0] if symmetric else None
    with poisoned_memory():
        y = int4.matmul(x, *_words(case), bias)
    # 128 + code enters the products, so that is the size of the terms.
    magnitude = case.magnitude * (144 / 8)
    assert_matmul_close(y, x, case.weight, magnitude, bias, TOLERANCES["fp32"])


@pytest.mark.parametrize("m", [1, 2, 3, 8, 17, 64])
def test_int4_matmul_with_k_split(m: int) -> None:
    case = Int4Case.random(*SPLIT_SHAPE, group=128, symmetric=False)
    x, bias = activations(m, SPLIT_SHAPE[1]), torch.ones(SPLIT_SHAPE[0])
    with poisoned_memory():
        y = int4.matmul(x, *_words(case), bias)
    magnitude = case.magnitude * (144 / 8)
    assert_matmul_close(y, x, case.weight, magnitude, bias, TOLERANCES["fp32"])


def test_many_rows_decode_the_weight_once_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "DECODED_ELEMENTS", 40 * 33)
    eight, four = Int8Case.random(70, 40), Int4Case.random(70, 40, group=32, symmetric=False)
    x, bias = activations(GEMM_MIN_ROWS, 40), activations(1, 70, seed=3)[0]
    with poisoned_memory():
        results = (
            int8.matmul(x, pack(eight.codes), eight.scales, bias),
            int4.matmul(x, *_words(four), bias),
        )
    for case_weight, y in zip((eight.weight, four.weight), results, strict=True):
        assert_matmul_close(y, x, case_weight, case_weight.abs(), bias, TOLERANCES["bf16"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_and_results_in_both_dtypes(dtype: torch.dtype) -> None:
    eight, four = Int8Case.random(5, 40), Int4Case.random(5, 40, group=32, symmetric=False)
    x = activations(3, 40, dtype)
    with poisoned_memory():
        results = (
            int8.matmul(x, pack(eight.codes), eight.scales, None),
            int4.matmul(x, *_words(four), None),
        )
    for weight, y in zip((eight.weight, four.weight), results, strict=True):
        assert y.dtype == dtype
        # The interpreter cuts a float32 off at bf16 instead of rounding it.
        tolerance = TOLERANCES["fp32"] if dtype == torch.float32 else 2**-7
        assert_matmul_close(y, x, weight, torch.full_like(weight, 144), None, tolerance)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 16, 32, 128])
@pytest.mark.parametrize(("n", "k"), ODD_SHAPES)
def test_int4_decode_is_exact(n: int, k: int, group: int, symmetric: bool) -> None:
    case = Int4Case.random(n, k, group=group, symmetric=symmetric)
    start = n // 2
    words, high, scales, zeros, _, columns = _words(case)
    with poisoned_memory():
        whole = decode_words(words, high, scales, zeros, columns, k, torch.float32, 0, n)
        part = decode_words(words, high, scales, zeros, columns, k, torch.float32, start, n + 5)
    assert torch.equal(whole, case.weight)
    assert torch.equal(part, case.weight[start:])


def test_splitk_sum_adds_in_order() -> None:
    partials = (
        activations(3 * 7 * 500, 1).view(3, 7, 500) * torch.tensor([1e6, 1.0, -1e6])[:, None, None]
    )
    with poisoned_memory():
        out = splitk_sum(partials, torch.float32)
    assert torch.equal(out, (partials[0] + partials[1]) + partials[2])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("splits", [1, 3])
def test_gated_sum(activation: str, splits: int) -> None:
    partials = activations(splits * 3, 2 * 300).view(splits, 3, 600)
    with poisoned_memory():
        out = gated_sum(partials, activation, torch.float32)
    torch.testing.assert_close(out, gated(partials.sum(0), activation))


@pytest.mark.parametrize("finish", ["partials", *ACTIVATIONS])
@pytest.mark.parametrize(("n", "k"), [(6, 40), (130, 96), (6, 2100)])
def test_finishes(n: int, k: int, finish: str) -> None:
    eight, four = Int8Case.random(n, k), Int4Case.random(n, k, group=32, symmetric=False)
    # Small: exp overflows into a warning in the interpreter, not on a GPU.
    x, bias = activations(3, k) * 2**-14, activations(1, n, seed=3)[0]
    codes = pack(eight.codes)
    kind = finish_of(finish, n)
    with poisoned_memory():
        whole = (int8.matmul(x, codes, eight.scales, bias), int4.matmul(x, *_words(four), bias))
        got = (
            int8.matmul(x, codes, eight.scales, bias, kind),
            int4.matmul(x, *_words(four), bias, kind),
        )
    for y, result in zip(whole, got, strict=True):
        if kind is Finish.PARTIALS:
            assert (result.shape[0] > 1) == (k == 2100)
            torch.testing.assert_close(result.sum(0), y)
        else:
            torch.testing.assert_close(result, gated(y, finish))


def test_launchers_name_the_argument_that_does_not_fit() -> None:
    eight, four = Int8Case.random(5, 40), Int4Case.random(5, 40, group=32, symmetric=False)
    words, _, scales, zeros, _, group = _words(four)
    x, codes = activations(2, 40), pack(eight.codes)
    with pytest.raises(LayoutError, match=r"`codes` has shape \[5, 40\], expected \[any, 64\]"):
        int8.matmul(x, eight.codes, eight.scales, None)
    with pytest.raises(LayoutError, match=r"`x` has dtype torch\.float64"):
        int8.matmul(x.double(), codes, eight.scales, None)
    with pytest.raises(LayoutError, match=r"`x` of shape \[2, 40\] has strides \[1, 2\]"):
        int8.matmul(activations(40, 2).T, codes, eight.scales, None)
    with pytest.raises(LayoutError, match=r"`scales` has dtype torch\.float32"):
        int8.matmul(x, codes, eight.scales.float(), None)
    with pytest.raises(LayoutError, match=r"`bias` has shape \[4\], expected \[5\]"):
        int8.matmul(x, codes, eight.scales, torch.zeros(4))
    with pytest.raises(LayoutError, match=r"`words` has shape \[5, 31\], expected \[any, 32\]"):
        int4.matmul(x, words[:, :31].contiguous(), None, scales, zeros, None, group, None)
    with pytest.raises(LayoutError, match=r"`scales` has shape \[5, 2\], expected \[1, 5, 8\]"):
        int4.matmul(x, words, None, four.scales, zeros, None, group, None)
    with pytest.raises(LayoutError, match="`group` is 24, expected a multiple of 16"):
        int4.matmul(x, words, None, scales, zeros, None, 24, None)
