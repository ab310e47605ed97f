"""Outliers as planes, as forms, and in the layouts that take them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from kernel_cases import Int4Case, OutlierCase, activations, assert_matmul_close
from torch import Tensor

from tersor.kernels.errors import LayoutError
from tersor.kernels.int4 import Int4Layout
from tersor.kernels.layout import Layout
from tersor.kernels.outliers import RowOutliers, SlicedOutliers, check_outliers
from tersor.kernels.outliers.rows import add_rows
from tersor.kernels.outliers.slices import CHUNK, SLICE_ROWS, token_columns

CPU = torch.device("cpu")
SHAPES = [(1, 1, 1), (3, 7, 2), (63, 129, 90), (129, 63, 1), (40, 300, 3000)]
FORMS = [RowOutliers, SlicedOutliers]


def packed(
    kind: type[RowOutliers | SlicedOutliers], case: OutlierCase
) -> RowOutliers | SlicedOutliers:
    outliers = check_outliers("int4", case.planes, case.n, case.k)
    assert outliers is not None
    return kind.pack(outliers)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(("n", "k", "count"), SHAPES)
def test_every_row_finds_its_outliers(
    n: int, k: int, count: int, kind: type[RowOutliers | SlicedOutliers]
) -> None:
    case = OutlierCase.random(n, k, count)
    form = packed(kind, case)
    rows = torch.tensor([n - 1, 0, n // 2, n // 2])
    assert torch.equal(add_rows(torch.zeros(4, k), form.lookup(rows)), case.weight[rows])
    every = form.lookup(torch.arange(n))
    assert torch.equal(add_rows(torch.zeros(n, k), every), case.weight)


@pytest.mark.parametrize(("n", "k", "count"), SHAPES)
def test_product_of_rows_does_not_depend_on_the_batch(n: int, k: int, count: int) -> None:
    case = OutlierCase.random(n, k, count)
    form = packed(RowOutliers, case)
    assert isinstance(form, RowOutliers)
    x = activations(17, k)
    whole = form.product(x)
    # float32 sums of a row's few products, in their order.
    assert_matmul_close(whole, x, case.weight, case.weight.abs(), None, 1e-5)
    for m in (0, 1, 2, 3, 8):
        assert torch.equal(form.product(x[:m]), whole[:m])


def test_slices_are_as_long_as_their_longest_row_in_whole_chunks() -> None:
    # Row 3 has nine outliers, row 17 one, and rows from 32 on none.
    positions = torch.tensor([3 * 50 + column for column in range(9)] + [17 * 50 + 49])
    values = torch.arange(1.0, 11.0).bfloat16()
    case = OutlierCase(positions=positions.to(torch.uint32), values=values, n=40, k=50)
    form = packed(SlicedOutliers, case)
    assert isinstance(form, SlicedOutliers)
    sizes = (form.starts[1:] - form.starts[:-1]).tolist()
    assert sizes == [2 * CHUNK * SLICE_ROWS, CHUNK * SLICE_ROWS, 0]
    assert form.longest == 2 * CHUNK
    assert form.nbytes == 4 * (sum(sizes) + 4)
    ninth = int(form.entries[8 * SLICE_ROWS + 3])
    assert (ninth & 0xFFFF, ninth >> 16 << 16) == (8, int(values[8].view(torch.int16)) << 16)


@pytest.mark.parametrize(("m", "width"), [(1, 1), (2, 16), (16, 16), (17, 32)])
def test_token_columns_are_x_transposed(m: int, width: int) -> None:
    x = activations(m, 5, torch.bfloat16)
    columns = token_columns(x)
    assert tuple(columns.shape) == (5, width)
    assert torch.equal(columns[:, :m], x.T)


def layout_of(planes: Mapping[str, Tensor], count: object) -> Layout:
    params = {"group": 0, "symmetric": True, "outliers": count}
    return Int4Layout.from_planes(planes, (4, 8), torch.bfloat16, params, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -1, 33, True, 2.0, "2", None])
def test_a_count_must_be_a_number_of_weights(count: object) -> None:
    case = Int4Case.random(4, 8, group=0, symmetric=True, outliers=2)
    with pytest.raises(LayoutError, match="`outliers` of layout `int4` must be an integer from 1"):
        layout_of(case.planes, count)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([3, 3], "`int4.outlier_positions` must ascend strictly"),
        ([4, 3], "`int4.outlier_positions` must ascend strictly"),
        ([3, 32], "`int4.outlier_positions` holds 32, expected less than N \\* K = 32"),
        ([3, (1 << 32) - 1], "holds 4294967295"),
    ],
)
def test_positions_must_ascend_within_the_weight(positions: list[int], message: str) -> None:
    planes = Int4Case.random(4, 8, group=0, symmetric=True, outliers=2).planes
    planes["outlier_positions"] = torch.tensor(positions).to(torch.uint32)
    with pytest.raises(LayoutError, match=message):
        layout_of(planes, 2)


def test_planes_must_be_the_declared_ones() -> None:
    planes = Int4Case.random(4, 8, group=0, symmetric=True, outliers=2).planes
    with pytest.raises(LayoutError, match=r"outlier_positions` has shape \[2\], expected \[3\]"):
        layout_of(planes, 3)
    with pytest.raises(LayoutError, match=r"outlier_values` has dtype torch.float32"):
        layout_of(planes | {"outlier_values": torch.ones(2)}, 2)
    with pytest.raises(LayoutError, match=r"missing: \['outlier_values'\]"):
        layout_of({name: p for name, p in planes.items() if name != "outlier_values"}, 2)
    with pytest.raises(LayoutError, match=r"32-bit positions, too few for \[65536, 65537\]"):
        Int4Layout.plane_specs(
            (1 << 16, (1 << 16) + 1),
            torch.bfloat16,
            {"group": 0, "symmetric": True, "outliers": 1},
        )
