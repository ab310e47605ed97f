from __future__ import annotations

import pytest
import torch
from bitmap_case import BitmapCase
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory
from torch import Tensor

from tersor.kernels.bitmap import BitmapLayout
from tersor.kernels.bitmap.packing import pack_mask, unpack_mask
from tersor.kernels.bitmap.planes import bit_counts
from tersor.kernels.bitmap.reference import pack_bits, unpack_bits
from tersor.kernels.errors import LayoutError
from tersor.kernels.gated import gated
from tersor.kernels.gemv import Finish

CPU = torch.device("cpu")
BF16 = torch.bfloat16
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (70, 512)]
VALUES = ["bf16", "f16", "f32", "int8"]


def layout_of(case: BitmapCase) -> BitmapLayout:
    shape = (case.planes["bitmap"].shape[0], case.k)
    return BitmapLayout.from_planes(case.planes, shape, BF16, case.params, CPU)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_layout_agrees_with_the_definition(n: int, k: int, density: float, values: str) -> None:
    case = BitmapCase.random(n, k, density=density, values=values)
    layout = layout_of(case)
    assert torch.equal(layout.dense(torch.float32), case.weight)
    indices = torch.tensor([[0, n - 1], [n // 2, 0]])
    assert torch.equal(layout.rows(indices, torch.float32), case.weight[indices])
    for m, dtype in ((1, torch.float32), (3, BF16), (70, torch.float32)):
        x = activations(m, k, dtype)
        bias = activations(1, n, seed=3)[0] if m != 3 else None
        with poisoned_memory():
            y = layout.matmul(x, bias)
        assert (y.dtype, tuple(y.shape)) == (dtype, (m, n))
        tolerance = TOLERANCES["fp32" if dtype == torch.float32 else "bf16"]
        assert_matmul_close(y, x, case.weight, case.weight.abs(), bias, tolerance)


def test_two_of_four_is_a_bitmap_too() -> None:
    mask = torch.tensor([True, False, False, True]).repeat(5, 16)
    values = activations(1, 5 * 32, BF16)[0]
    planes = {"bitmap": pack_bits(mask), "values": values}
    layout = BitmapLayout.from_planes(
        planes, (5, 64), BF16, {"nonzeros": 160, "values": "bf16"}, CPU
    )
    dense = layout.dense()
    assert torch.equal(dense[mask], values)
    assert int(dense.count_nonzero()) == int(values.count_nonzero())


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_rows_of_planes_are_a_weight(values: str) -> None:
    case = BitmapCase.random(300, 70, values=values)
    for start, stop in ((0, 128), (128, 256), (256, 384)):
        cut = BitmapLayout.rows_of_planes(case.planes, start, stop, case.params)
        params = BitmapLayout.params_of_planes(cut, case.params)
        shape = (cut["bitmap"].shape[0], 70)
        part = BitmapLayout.from_planes(cut, shape, BF16, params, CPU)
        assert torch.equal(part.dense(torch.float32), case.weight[start:stop])


def test_partials_and_gates() -> None:
    layout = layout_of(BitmapCase.random(6, 40))
    x = activations(3, 40)
    torch.testing.assert_close(layout.partials(x).sum(0), layout.matmul(x))
    torch.testing.assert_close(layout.gated(x, None, "silu"), gated(layout.matmul(x), "silu"))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("k", [1, 63, 128, 300, 1 << 15])
def test_words_hold_the_weight(k: int, values: str) -> None:
    case = BitmapCase.random(5, k, values=values)
    form = case.form()
    assert torch.equal(form.dequantize(), case.weight)
    assert torch.equal(form.rows(torch.tensor([4, 0])), case.weight[[4, 0]])
    x = activations(3, k)
    y = form.matmul(x, None, Finish.SUM)
    assert_matmul_close(y, x, case.weight, case.weight.abs(), None, TOLERANCES["fp32"])


def test_bits_are_where_the_drawing_says() -> None:
    mask = torch.zeros(1, 300, dtype=torch.bool)
    mask[0, 128 + 3 * 32 + 17] = True  # block 1, slice 3, column 17 of the slice
    words = pack_mask(mask)
    assert words.shape == (1, 12)
    bit = 4 * 17 + 3
    assert int(words[0, 4 + bit // 32]) == 1 << (bit % 32)
    assert int(unpack_mask(words).count_nonzero()) == 1


def test_resident_bytes_are_a_bit_an_offset_and_the_values() -> None:
    case = BitmapCase.random(128, 256)
    nonzeros = case.planes["values"].numel()
    assert layout_of(case).resident_bytes == 128 * 32 + 128 * 4 + 2 * (nonzeros + 2) + 2048
    assert case.form().nbytes == 128 * 32 + 128 * 8 * 2 + 128 * 4 + 2 * (nonzeros + 2)


def test_bits_and_their_counts() -> None:
    bitmap = torch.arange(256, dtype=torch.uint8).view(16, 16)
    assert torch.equal(pack_bits(unpack_bits(bitmap, 128)), bitmap)
    expected = [byte.bit_count() for byte in range(256)]
    assert bit_counts(bitmap).view(-1).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_operator_passes_opcheck(values: str, dtype: torch.dtype) -> None:
    weight = BitmapCase.random(5, 40, values=values).packed()
    for tail in ((), (torch.ones(5),)):
        torch.library.opcheck(
            torch.ops.tersor.bitmap_matmul.default,
            (
                activations(3, 40, dtype),
                weight.words,
                weight.offsets,
                weight.starts,
                weight.values,
                weight.scales,
                *tail,
            ),
        )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"nonzeros": 3}, r"`nonzeros` and `values`, got \['nonzeros'\]"),
        ({"nonzeros": 33, "values": "bf16"}, "from 0 to 32, got 33"),
        ({"nonzeros": -1, "values": "bf16"}, "from 0 to 32, got -1"),
        ({"nonzeros": True, "values": "bf16"}, "from 0 to 32, got True"),
        ({"nonzeros": 3, "values": "int4"}, "one of bf16, f16, f32, int8, got 'int4'"),
        ({"nonzeros": 3, "values": 8}, "got 8"),
    ],
)
def test_unknown_parameters_are_refused(params: dict[str, int | str], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        BitmapLayout.plane_specs((4, 8), BF16, params)


def test_more_values_than_kernels_count_are_refused() -> None:
    with pytest.raises(LayoutError, match="from 0 to 2147483647, got 2147483648"):
        BitmapLayout.plane_specs((1 << 16, 1 << 16), BF16, {"nonzeros": 1 << 31, "values": "bf16"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bitmap": torch.zeros(4, 2, dtype=torch.uint8)}, r"has 0 bits set, expected \d+"),
        ({"bitmap": torch.full((4, 2), 255, dtype=torch.uint8)}, "set beyond its last column, 9"),
        ({"bitmap": torch.zeros(4, 1, dtype=torch.uint8)}, r"shape \[4, 1\], expected \[4, 2\]"),
        ({"values": torch.ones(1).bfloat16()}, r"values` has shape \[1\]"),
        ({"scales": torch.ones(4).bfloat16()}, r"unknown: \['scales'\]"),
    ],
)
def test_hostile_planes_are_refused(change: dict[str, Tensor], message: str) -> None:
    case = BitmapCase.random(4, 10)
    with pytest.raises(LayoutError, match=message):
        BitmapLayout.from_planes(case.planes | change, (4, 10), BF16, case.params, CPU)
