from __future__ import annotations

import pytest
import torch
from codebook4_case import FP4, Codebook4Case
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory
from ptx import run
from torch import Tensor

from tersor.kernels.codebook4 import Codebook4Layout, reference
from tersor.kernels.codebook4.decode.assembly import assembly
from tersor.kernels.codebook4.lookup import gpu_lookup, is_mirrored, rounded_table
from tersor.kernels.codebook4.scales import ScaleGrid
from tersor.kernels.codebook4.words import WordsForm
from tersor.kernels.errors import LayoutError
from tersor.kernels.gated import gated
from tersor.kernels.gemv import Finish

CPU = torch.device("cpu")
BF16 = torch.bfloat16
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (130, 512)]
SCALES = ["bf16", "f32", "e8m0", "e4m3"]


def layout_of(case: Codebook4Case) -> Codebook4Layout:
    n, k = case.planes["codes"].shape
    return Codebook4Layout.from_planes(case.planes, (n, k), BF16, case.params, CPU)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("group", [0, 16, 32, 40, 128])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_layout_agrees_with_the_definition(n: int, k: int, group: int, scale: str) -> None:
    case = Codebook4Case.random(n, k, group=group, scale=scale)
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


def test_rows_of_planes_are_a_weight() -> None:
    case = Codebook4Case.random(300, 70, group=16, scale="e4m3")
    for start, stop in ((0, 128), (256, 384)):
        cut = Codebook4Layout.rows_of_planes(case.planes, start, stop, case.params)
        shape = (cut["codes"].shape[0], 70)
        part = Codebook4Layout.from_planes(cut, shape, BF16, case.params, CPU)
        assert torch.equal(part.dense(torch.float32), case.weight[start:stop])


def test_partials_and_gates() -> None:
    layout = layout_of(Codebook4Case.random(6, 40, group=16, scale="bf16"))
    x = activations(3, 40)
    torch.testing.assert_close(layout.partials(x).sum(0), layout.matmul(x))
    torch.testing.assert_close(layout.gated(x, None, "silu"), gated(layout.matmul(x), "silu"))


def test_resident_bytes_are_half_a_byte_a_weight_the_scales_and_a_table() -> None:
    case = Codebook4Case.random(128, 256, group=32, scale="e8m0")
    assert layout_of(case).resident_bytes == 128 * 256 // 2 + 128 * 8 + 256 * 8
    words = WordsForm.pack(case.canonical())
    assert words.nbytes == 128 * 256 // 2 + 128 * 8 + 264 * 4 + 64


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("group", [0, 16, 32, 64, 96, 128, 256])
@pytest.mark.parametrize("k", [1, 63, 256, 700])
def test_words_hold_the_weight(k: int, group: int, scale: str) -> None:
    case = Codebook4Case.random(5, k, group=group, scale=scale)
    form = WordsForm.pack(case.canonical())
    assert torch.equal(form.dequantize(), case.weight)
    assert torch.equal(form.rows(torch.tensor([4, 0])), case.weight[[4, 0]])
    x = activations(3, k)
    y = form.matmul(x, None, Finish.SUM)
    assert_matmul_close(y, x, case.rounded, case.rounded.abs(), None, TOLERANCES["fp32"])


def test_scales_of_a_block_lie_in_its_words_lowest_first() -> None:
    scales = torch.arange(1, 17, dtype=torch.uint8).view(1, 16)
    packed = ScaleGrid(32, 512, "e8m0").pack(scales)  # two blocks of eight groups
    assert packed.shape == (2, 2, 1)
    assert packed[1, 0, 0] == 0x0C0B0A09


@pytest.mark.parametrize("table", [FP4, torch.randn(16, generator=torch.manual_seed(0))])
def test_the_assembly_looks_every_code_up(table: Tensor) -> None:
    lookup = gpu_lookup(table)
    operands = {f"${10 + 2 * i}": int(lookup[i]) & 0xFFFFFFFF for i in range(8)}
    values = [int(each) & 0xFFFF for each in rounded_table(lookup).view(torch.int16)]
    rng = torch.Generator().manual_seed(1)
    words = [0x76543210, 0xFEDCBA98, *torch.randint(0, 1 << 32, (20,), generator=rng).tolist()]
    for first, second in zip(words, words[::-1], strict=True):
        after = run(assembly(mirrored=is_mirrored(table)), operands | {"$8": first, "$9": second})
        for j in range(8):
            low, high = values[first >> (4 * j) & 15], values[second >> (4 * j) & 15]
            assert after[f"${j}"] == high << 16 | low


def test_tables_with_signs_are_mirrored() -> None:
    assert is_mirrored(FP4)
    assert not is_mirrored(torch.linspace(-1, 1, 16))


def test_all_e8m0_exponents_are_powers_of_two() -> None:
    exponents = torch.arange(255, dtype=torch.uint8)
    expected = torch.ldexp(torch.ones(255, dtype=torch.float64), torch.arange(255) - 127)
    assert torch.equal(reference.scale_values(exponents).double(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_operator_passes_opcheck(dtype: torch.dtype) -> None:
    weight = Codebook4Case.random(5, 40, group=16, scale="e4m3").packed()
    rest = (weight.lookup, weight.tensor_scale, 16, "e4m3", weight.mirrored)
    for tail in ((), (torch.ones(5),)):
        torch.library.opcheck(
            torch.ops.tersor.codebook4_matmul.default,
            (activations(3, 40, dtype), weight.words, weight.scales, *rest, *tail),
        )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"group": 32}, r"`group` and `scale`, got \['group'\]"),
        ({"group": -1, "scale": "bf16"}, "integer >= 0, got -1"),
        ({"group": True, "scale": "bf16"}, "integer >= 0, got True"),
        ({"group": 32, "scale": "e5m2"}, "one of bf16, f32, e8m0, e4m3, got 'e5m2'"),
        ({"group": 32, "scale": 3}, "got 3"),
    ],
)
def test_unknown_parameters_are_refused(params: dict[str, int | str], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Codebook4Layout.plane_specs((4, 8), BF16, params)


@pytest.mark.parametrize(
    ("scale", "plane", "value", "message"),
    [
        ("bf16", "codes", torch.full((4, 8), 16, dtype=torch.uint8), "codes` holds 16, expected"),
        ("bf16", "table", torch.full((16,), float("nan")), "table` holds 16 values that are not"),
        ("bf16", "table", torch.zeros(15), r"table` has shape \[15\], expected \[16\]"),
        ("f32", "scales", torch.full((4, 1), float("inf")), "scales` holds 4 values"),
        ("e8m0", "scales", torch.full((4, 1), 255, dtype=torch.uint8), "scales` holds 4 values"),
        ("e8m0", "scales", torch.ones(4, 1), "dtype torch.float32, expected torch.uint8"),
        (
            "e4m3",
            "scales",
            torch.full((4, 1), 127, dtype=torch.uint8).view(torch.float8_e4m3fn),
            "scales` holds 4 values",
        ),
        ("e4m3", "tensor_scale", torch.tensor([float("-inf")]), "tensor_scale` holds 1 values"),
        ("bf16", "tensor_scale", torch.ones(1), r"unknown: \['tensor_scale'\]"),
    ],
)
def test_hostile_planes_are_refused(scale: str, plane: str, value: Tensor, message: str) -> None:
    planes = Codebook4Case.random(4, 8, group=32, scale=scale).planes | {plane: value}
    params: dict[str, int | str] = {"group": 32, "scale": scale}
    with pytest.raises(LayoutError, match=message):
        Codebook4Layout.from_planes(planes, (4, 8), BF16, params, CPU)
