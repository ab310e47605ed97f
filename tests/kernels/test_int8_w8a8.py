"""The `int8` layout with activations rounded to signed bytes, on the CPU."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import Int8Case, activations
from poison import poisoned_memory
from torch import Tensor

from tersor.kernels.errors import LayoutError
from tersor.kernels.gated import gated
from tersor.kernels.int8 import Int8Layout
from tersor.kernels.int8.packing import pack
from tersor.kernels.int8.w8a8 import cpu, reference

SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (300, 2100)]
BATCHES = [1, 2, 3, 8, 17, 64, 100]
PARAMS = {"activations": "int8"}


def layout_of(case: Int8Case, *, step: str | None = None) -> Int8Layout:
    n, k = case.codes.shape
    params = PARAMS if step is None else {**PARAMS, "step": step}
    return Int8Layout.from_planes(case.planes, (n, k), torch.bfloat16, params, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_results_are_those_of_the_definition_bit_for_bit(
    n: int, k: int, dtype: torch.dtype
) -> None:
    case = Int8Case.random(n, k)
    layout = layout_of(case)
    for m in BATCHES:
        x = activations(m, k, dtype)
        for bias in (None, activations(1, n, seed=3)[0]):
            with poisoned_memory():
                y = layout.matmul(x, bias)
            expected = reference.matmul(x, pack(case.codes), case.scales, bias)
            assert torch.equal(y, expected.to(dtype))


def test_rows_do_not_depend_on_the_batch() -> None:
    layout = layout_of(Int8Case.random(130, 2100))
    x = activations(100, 2100)
    whole = layout.matmul(x)
    for m in (1, 2, 33, 64, 65):
        assert torch.equal(layout.matmul(x[:m]), whole[:m])


@pytest.mark.parametrize("product", [cpu.widened_product, lambda x, w: torch._int_mm(x, w.T)])
def test_sums_are_exact_at_their_largest(product: object) -> None:
    assert callable(product)
    k = 5000
    x = torch.full((2, k), 127, dtype=torch.int8)
    codes = torch.full((3, k), -128, dtype=torch.int8)
    codes[1] = 127
    codes[2, ::2] = 127
    expected = x.to(torch.int64) @ codes.to(torch.int64).T
    assert torch.equal(product(x, codes).to(torch.int64), expected)


def test_quantized_activations() -> None:
    x = activations(5, 40)
    x[1] = 0
    x[2] = 1e-35  # as good as zero: 127 / absmax would be infinite
    x[3, 0] = float("nan")
    codes, scales = reference.quantize_tokens(x, 64)
    assert codes.shape == (5, 64)
    assert not codes[:, 40:].any()
    assert not codes[1].any()
    assert scales[1:3].tolist() == [0, 0]
    assert scales[3].isnan()
    assert codes[0].abs().max() == 127
    assert bool(((codes[0, :40] * scales[0] - x[0]).abs() <= scales[0] * 0.5001).all())


def test_an_empty_batch_and_a_token_of_nan() -> None:
    layout = layout_of(Int8Case.random(20, 40))
    x = activations(3, 40)
    assert layout.matmul(x[:0]).shape == (0, 20)
    x[1, 5] = float("nan")
    y = layout.matmul(x)
    assert bool(y[1].isnan().all())
    assert bool(y[[0, 2]].isfinite().all())


def test_finishes() -> None:
    layout = layout_of(Int8Case.random(20, 40))
    x, bias = activations(3, 40), activations(1, 20, seed=3)[0]
    y = layout.matmul(x, bias)
    assert torch.equal(layout.partials(x, bias), y[None])
    assert torch.equal(layout.gated(x, bias, "silu"), gated(y, "silu"))


def test_a_step_for_the_whole_weight() -> None:
    rows = Int8Case.random(20, 40)
    case = Int8Case(codes=rows.codes, scales=rows.scales[:1])
    x = activations(3, 40)
    for params in ({"step": "tensor"}, {"step": "tensor", **PARAMS}):
        layout = Int8Layout.from_planes(
            case.planes, (20, 40), torch.bfloat16, params, torch.device("cpu")
        )
        per_row = Int8Case(codes=rows.codes, scales=rows.scales[:1].expand(20).contiguous())
        expected = Int8Layout.from_planes(
            per_row.planes,
            (20, 40),
            torch.bfloat16,
            {name: value for name, value in params.items() if name != "step"},
            torch.device("cpu"),
        )
        assert torch.equal(layout.matmul(x), expected.matmul(x))
        assert torch.equal(layout.dense(torch.float32), expected.dense(torch.float32))
        part = Int8Layout.rows_of_planes(case.planes, 0, 5, params)
        assert {name: tuple(plane.shape) for name, plane in part.items()} == {
            "codes": (5, 40),
            "scales": (1,),
        }


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"step": "row"}, "`step` of layout `int8` must be 'tensor' or absent, got 'row'"),
        ({"step": True}, "`step` of layout `int8` must be 'tensor' or absent, got True"),
        ({"activations": "fp8"}, "`activations` of layout `int8` must be 'int8' or absent"),
        ({"group": 32}, "takes the parameters `step` and `activations`, got \\['group'\\]"),
    ],
)
def test_other_parameters_are_refused(params: dict[str, str | int], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Int8Layout.plane_specs((4, 8), torch.bfloat16, params)


def test_planes_must_fit_the_step() -> None:
    case = Int8Case.random(4, 8)
    planes: dict[str, Tensor] = case.planes
    with pytest.raises(LayoutError, match=r"`int8.scales` has shape \[4\], expected \[1\]"):
        Int8Layout.from_planes(
            planes, (4, 8), torch.bfloat16, {"step": "tensor"}, torch.device("cpu")
        )


def test_more_columns_than_sums_can_hold_are_refused() -> None:
    columns = reference.MAX_COLUMNS
    assert columns * 127 * 128 < 2**31 <= (columns + 1) * 127 * 128
    Int8Layout.plane_specs((4, columns), torch.bfloat16, PARAMS)
    Int8Layout.plane_specs((4, columns + 1), torch.bfloat16, {})
    with pytest.raises(LayoutError, match=r"at most 132104 columns.*got 132105"):
        Int8Layout.plane_specs((4, columns + 1), torch.bfloat16, PARAMS)
