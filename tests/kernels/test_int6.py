from __future__ import annotations

import pytest
import torch
from kernel_cases import TOLERANCES, Int6Case, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.crossover import packed_max_rows
from tersor.kernels.errors import LayoutError
from tersor.kernels.gated import gated
from tersor.kernels.int4.packing import HIGH_SHIFTS
from tersor.kernels.int6 import Int6Layout
from tersor.kernels.int6.forms import WordsForm
from tersor.kernels.int6.packing import pack, unpack
from tersor.kernels.outliers import SlicedOutliers, check_outliers

CPU = torch.device("cpu")
MAX_ROWS = packed_max_rows("int8")  # whose CPU path int6 takes
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (130, 512)]
KINDS = [(False, 0), (True, 0), (False, 1), (True, 20)]  # step per tensor, outliers


def layout_of(case: Int6Case) -> Int6Layout:
    n, k = case.codes.shape
    return Int6Layout.from_planes(case.planes, (n, k), torch.bfloat16, case.params, CPU)


def words_of(case: Int6Case) -> WordsForm:
    found = check_outliers("int6", case.planes, *case.codes.shape)
    sliced = None if found is None else SlicedOutliers.pack(found)
    return WordsForm.pack(case.codes, case.scales, sliced)


@pytest.mark.parametrize(("per_tensor", "outliers"), KINDS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul_agrees_with_the_definition(n: int, k: int, per_tensor: bool, outliers: int) -> None:
    case = Int6Case.random(n, k, per_tensor=per_tensor, outliers=min(outliers, n * k))
    layout = layout_of(case)
    for m in (1, 3, MAX_ROWS, MAX_ROWS + 1):
        for dtype in (torch.float32, torch.bfloat16):
            x = activations(m, k, dtype)
            bias = activations(1, n, seed=3)[0] if m % 2 else None
            with poisoned_memory():
                y = layout.matmul(x, bias)
            assert (y.dtype, tuple(y.shape)) == (dtype, (m, n))
            assert_matmul_close(y, x, case.weight, case.magnitude, bias, TOLERANCES["bf16"])


@pytest.mark.parametrize(("per_tensor", "outliers"), KINDS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_dense_and_rows_are_exact_in_both_forms(
    n: int, k: int, per_tensor: bool, outliers: int
) -> None:
    case = Int6Case.random(n, k, per_tensor=per_tensor, outliers=min(outliers, n * k))
    layout, words = layout_of(case), words_of(case)
    assert torch.equal(layout.dense(torch.float32), case.weight)
    assert torch.equal(words.dequantize(), case.weight)
    indices = torch.tensor([[0, n - 1], [n // 2, 0]])
    assert torch.equal(layout.rows(indices, torch.float32), case.weight[indices])
    assert torch.equal(words.rows(indices[0]), case.weight[indices[0]])


def test_rows_do_not_depend_on_the_batch_and_finishes_agree() -> None:
    layout = layout_of(Int6Case.random(130, 257, outliers=160))
    x = activations(MAX_ROWS, 257) * 2**-8
    whole = layout.matmul(x)
    for m in (1, 2, 3, 8, 17):
        assert torch.equal(layout.matmul(x[:m]), whole[:m])
    assert torch.equal(layout.partials(x), whole[None])
    assert torch.equal(layout.gated(x, None, "silu"), gated(whole, "silu"))


@pytest.mark.parametrize("k", [1, 63, 256, 300])
def test_words_and_high_bits_hold_the_codes_where_the_drawing_says(k: int) -> None:
    codes = Int6Case.random(5, k).codes
    words, high = pack(codes)
    assert torch.equal(unpack(words, high, k), codes)
    for column in (0, k // 2, k - 1):
        block, within = divmod(column, 8 * 32)
        nibble, word = divmod(within, 32)
        low = (words[:, block * 32 + word].to(torch.int64) >> (4 * nibble)) & 15
        two = (high[:, block * 32 + word].to(torch.int64) >> HIGH_SHIFTS[nibble]) & 3
        assert torch.equal((two << 4 | low) - 32, codes[:, column].to(torch.int64))


def test_resident_bytes() -> None:
    case = Int6Case.random(64, 512)
    assert layout_of(case).resident_bytes == 64 * 512 + 64 * 2  # a byte a code on a CPU
    assert words_of(case).nbytes == 64 * 512 * 6 // 8 + 64 * 2


def test_hostile_planes_and_parameters_are_refused() -> None:
    case = Int6Case.random(4, 8)
    specs = Int6Layout.plane_specs
    with pytest.raises(LayoutError, match=r"no parameters but `step` and `outliers`.*'group'"):
        specs((4, 8), torch.bfloat16, {"group": 32})
    with pytest.raises(LayoutError, match=r"`step` of layout `int6` must be 'tensor' or absent"):
        specs((4, 8), torch.bfloat16, {"step": "row"})
    with pytest.raises(LayoutError, match=r"matrices \[N, K\]"):
        specs((4,), torch.bfloat16, {})
    for value in (32, -33):
        planes = case.planes | {"codes": torch.full((4, 8), value, dtype=torch.int8)}
        with pytest.raises(LayoutError, match=rf"`int6.codes` holds {value}, expected -32\.\.31"):
            Int6Layout.from_planes(planes, (4, 8), torch.bfloat16, {}, CPU)
    with pytest.raises(LayoutError, match=r"`int6.scales` has shape \[4\], expected \[1\]"):
        Int6Layout.from_planes(case.planes, (4, 8), torch.bfloat16, {"step": "tensor"}, CPU)
