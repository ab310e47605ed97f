from __future__ import annotations

import pytest
import torch
from kernel_cases import TOLERANCES, Int8Case, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.crossover import packed_max_rows
from tersor.kernels.int8 import Int8Layout

SHAPES = [(1, 1), (3, 7), (63, 33), (129, 63), (65, 300), (300, 129)]
MAX_ROWS = packed_max_rows("int8")
BATCHES = [1, 2, 3, 8, 17, MAX_ROWS, MAX_ROWS + 1, 64]


def layout_of(case: Int8Case) -> Int8Layout:
    n, k = case.codes.shape
    return Int8Layout.from_planes(case.planes, (n, k), torch.bfloat16, {}, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul_agrees_with_the_definition(n: int, k: int, dtype: torch.dtype) -> None:
    case = Int8Case.random(n, k)
    layout = layout_of(case)
    for m in BATCHES:
        x = activations(m, k, dtype)
        for bias in (None, activations(1, n, seed=3)[0]):
            with poisoned_memory():
                y = layout.matmul(x, bias)
            assert (y.dtype, tuple(y.shape)) == (dtype, (m, n))
            assert_matmul_close(y, x, case.weight, case.magnitude, bias, TOLERANCES["bf16"])


def test_rows_do_not_depend_on_the_batch() -> None:
    layout = layout_of(Int8Case.random(130, 257))
    x = activations(MAX_ROWS, 257)
    whole = layout.matmul(x)
    for m in (1, 2, 3, 8, 17, 32):
        assert torch.equal(layout.matmul(x[:m]), whole[:m])


def test_leading_dimensions_and_strides_of_x_are_free() -> None:
    case = Int8Case.random(20, 40)
    x = activations(12, 80)
    y = layout_of(case).matmul(x.view(3, 4, 80)[..., ::2])
    assert tuple(y.shape) == (3, 4, 20)
    assert torch.equal(y.view(12, 20), layout_of(case).matmul(x[:, ::2].contiguous()))
    assert tuple(layout_of(case).matmul(x[:0, :40]).shape) == (0, 20)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_dense_and_rows_decode_exactly(n: int, k: int) -> None:
    case = Int8Case.random(n, k)
    layout = layout_of(case)
    assert torch.equal(layout.dense(torch.float32), case.weight)
    assert layout.dense().dtype == torch.bfloat16
    indices = torch.tensor([[0, n - 1], [n // 2, 0]])
    assert torch.equal(layout.rows(indices, torch.float32), case.weight[indices])


def test_resident_bytes_are_a_byte_a_weight() -> None:
    assert layout_of(Int8Case.random(64, 128)).resident_bytes == 64 * 128 + 64 * 2
