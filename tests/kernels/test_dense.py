from __future__ import annotations

import pytest
import torch
from kernel_cases import TOLERANCES, activations, assert_matmul_close

from tersor.kernels.dense import DenseLayout
from tersor.kernels.errors import LayoutError

CPU = torch.device("cpu")


def dense(values: torch.Tensor) -> DenseLayout:
    shape = tuple(values.shape)
    return DenseLayout.from_planes({"values": values}, shape, values.dtype, {}, CPU)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 7), (129, 63)])
def test_matmul_computes_in_the_wider_dtype(
    n: int, k: int, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    weight = activations(n, k, weight_dtype, seed=2)
    bias = activations(1, n, seed=3)[0]
    for m in (1, 2, 17):
        x = activations(m, k, dtype)
        y = dense(weight.clone()).matmul(x, bias)
        assert y.dtype == dtype
        tolerance = TOLERANCES["fp32" if dtype == torch.float32 else "bf16"]
        assert_matmul_close(y, x, weight, weight.abs(), bias, tolerance)


def test_a_narrow_matrix_is_widened_once_and_says_so() -> None:
    layout = dense(activations(64, 32, torch.bfloat16))
    assert layout.resident_bytes == 64 * 32 * 2
    layout.matmul(activations(1, 32, torch.bfloat16))
    assert layout.resident_bytes == 64 * 32 * 2
    layout.matmul(activations(1, 32))
    assert layout.resident_bytes == 64 * 32 * 4
    assert layout.dtype == torch.bfloat16
    assert torch.equal(layout.dense(), activations(64, 32, torch.bfloat16))


def test_prepare_widens_matrices_and_vectors_ahead() -> None:
    matrix, vector = dense(activations(8, 4, torch.bfloat16)), dense(torch.rand(4).bfloat16())
    original = vector.dense().clone()
    image = dense(torch.ones(2, 2, 2).bfloat16())
    for layout in (matrix, vector, image):
        layout.prepare(torch.float32)
    sizes = (matrix.resident_bytes, vector.resident_bytes, image.resident_bytes)
    assert sizes == (8 * 4 * 4, 4 * 4, 8 * 2)
    wide = vector.dense(torch.float32)
    assert wide.data_ptr() == vector.dense(torch.float32).data_ptr()
    assert torch.equal(wide, original.float())
    assert torch.equal(vector.dense(), original)


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor(3),
        torch.arange(6).view(1, 2, 3),
        torch.ones(5).bfloat16(),
        torch.tensor([True]),
    ],
)
def test_any_rank_and_dtype_is_kept_bit_for_bit(values: torch.Tensor) -> None:
    layout = dense(values)
    assert torch.equal(layout.dense(), values)
    assert layout.dense().dtype == values.dtype
    with pytest.raises(LayoutError, match=r"needs a weight \[N, K\]"):
        layout.matmul(torch.ones(1, 1))


def test_rows_is_an_embedding_lookup() -> None:
    weight = activations(9, 5, torch.bfloat16)
    indices = torch.tensor([[8, 0], [3, 3]])
    rows = dense(weight).rows(indices, torch.float32)
    assert torch.equal(rows, weight.float()[indices])
