from __future__ import annotations

from unittest import mock

import pytest
import torch
from kernel_cases import TOLERANCES, Int4Case, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.crossover import packed_max_rows
from tersor.kernels.errors import LayoutError
from tersor.kernels.int4 import Int4Layout, cpu
from tersor.kernels.int4.nibbles import NibblesForm
from tersor.kernels.int4.packing import (
    ScaleCut,
    block_words,
    pack_scales,
    pack_words,
    unpack_words,
)
from tersor.kernels.int4.tiles import TilesForm

CPU = torch.device("cpu")
SHAPES = [(1, 1), (3, 7), (63, 33), (129, 63), (65, 300), (130, 512)]
GROUPS = [0, 16, 32, 48, 64, 128, 512]
MAX_ROWS = packed_max_rows("int4")
BATCHES = [1, 3, 17, MAX_ROWS, MAX_ROWS + 1]


def layout_of(case: Int4Case) -> Int4Layout:
    n, k = case.codes.shape
    return Int4Layout.from_planes(case.planes, (n, k), torch.bfloat16, case.params, CPU)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul_agrees_with_the_definition(n: int, k: int, group: int, symmetric: bool) -> None:
    case = Int4Case.random(n, k, group=group, symmetric=symmetric)
    layout = layout_of(case)
    for m in BATCHES:
        for dtype in (torch.float32, torch.bfloat16):
            x = activations(m, k, dtype)
            bias = activations(1, n, seed=3)[0] if m % 2 else None
            with poisoned_memory():
                y = layout.matmul(x, bias)
            assert (y.dtype, tuple(y.shape)) == (dtype, (m, n))
            assert_matmul_close(y, x, case.weight, case.magnitude, bias, TOLERANCES["bf16"])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_dense_and_rows_decode(n: int, k: int, group: int, symmetric: bool) -> None:
    case = Int4Case.random(n, k, group=group, symmetric=symmetric)
    layout = layout_of(case)
    decoded = layout.dense(torch.float32)
    # (8 - zero) * scale is held in bf16: at most 7 steps, rounded to 2^-9 of them.
    error = (decoded - case.weight).abs().max()
    assert error <= (0 if symmetric else float(case.scales.max()) / 64)
    indices = torch.tensor([[0, n - 1], [n // 2, 0]])
    torch.testing.assert_close(layout.rows(indices, torch.float32), decoded[indices])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("per_tensor", "group"), [(True, 0), (False, 0), (False, 32), (False, 48)])
@pytest.mark.parametrize(("n", "k"), SHAPES[:-1])
def test_outliers_and_a_step_per_tensor(
    n: int, k: int, per_tensor: bool, group: int, symmetric: bool
) -> None:
    case = Int4Case.random(
        n, k, group=group, symmetric=symmetric, per_tensor=per_tensor, outliers=-(-n * k // 50)
    )
    layout = layout_of(case)
    for m in BATCHES:
        x, bias = activations(m, k), activations(1, n, seed=3)[0]
        with poisoned_memory():
            y = layout.matmul(x, bias)
        assert_matmul_close(y, x, case.weight, case.magnitude, bias, TOLERANCES["bf16"])
    error = (layout.dense(torch.float32) - case.weight).abs().max()
    assert error <= (1e-5 if symmetric else float(case.scales.max()) / 64)
    indices = torch.tensor([n - 1, 0])
    found = layout.rows(indices, torch.float32)
    torch.testing.assert_close(found, layout.dense(torch.float32)[indices])


def test_a_step_per_tensor_has_no_groups() -> None:
    params: dict[str, str | int | bool | None]
    params = {"group": 32, "symmetric": True, "step": "tensor"}
    with pytest.raises(LayoutError, match="`group` must be 0, not 32"):
        Int4Layout.plane_specs((4, 64), torch.bfloat16, params)
    for step in ("row", None, True):
        with pytest.raises(LayoutError, match="must be 'tensor' or absent"):
            Int4Layout.plane_specs((4, 64), torch.bfloat16, {**params, "group": 0, "step": step})


@pytest.mark.parametrize("group", [0, 32, 128])
def test_rows_do_not_depend_on_the_batch(group: int) -> None:
    layout = layout_of(Int4Case.random(130, 257, group=group, symmetric=False))
    x = activations(MAX_ROWS, 257)
    whole = layout.matmul(x)
    for m in (1, 2, 3, 8, 17, 32):
        assert torch.equal(layout.matmul(x[:m]), whole[:m])


def test_resident_bytes_are_half_a_byte_a_weight_and_the_scales() -> None:
    case = Int4Case.random(128, 256, group=32, symmetric=True)
    assert layout_of(case).resident_bytes == 128 * 256 // 2 + 128 * 8 * 4


def test_this_machine_takes_the_packed_kernel_for_the_usual_groups() -> None:
    assert cpu.tile_rows() in {16, 32, 64}
    for group in (0, 32, 64, 128, 256):
        case = Int4Case.random(64, 512, group=group, symmetric=True)
        assert isinstance(layout_of(case)._form, TilesForm)
    assert isinstance(
        layout_of(Int4Case.random(64, 512, group=48, symmetric=True))._form, NibblesForm
    )


def test_an_unknown_tile_order_falls_back_to_nibbles() -> None:
    case = Int4Case.random(64, 96, group=32, symmetric=False)
    with mock.patch.object(cpu, "tile_rows", return_value=None):
        fallback = layout_of(case)
    assert isinstance(fallback._form, NibblesForm)
    x = activations(3, 96)
    assert_matmul_close(
        fallback.matmul(x), x, case.weight, case.magnitude, None, TOLERANCES["bf16"]
    )


@pytest.mark.parametrize("bw", [16, 32])
@pytest.mark.parametrize("k", [1, 63, 256, 300])
def test_words_hold_the_codes_where_the_drawing_says(bw: int, k: int) -> None:
    codes = torch.randint(0, 16, (5, k), dtype=torch.uint8, generator=torch.manual_seed(0))
    words = pack_words(codes, bw)
    assert torch.equal(unpack_words(words, bw, k), codes)
    for column in (0, k // 2, k - 1):
        block, within = divmod(column, 8 * bw)
        nibble, word = divmod(within, bw)
        value = (words[:, block * bw + word].to(torch.int64) >> (4 * nibble)) & 15
        assert torch.equal(value, codes[:, column].to(torch.int64))


@pytest.mark.parametrize(
    ("group", "k", "expected"),
    [(32, 512, 32), (96, 512, 32), (16, 512, 16), (48, 512, 16), (40, 512, None), (100, 100, 32)],
)
def test_block_width_never_lets_a_slice_straddle_groups(
    group: int, k: int, expected: int | None
) -> None:
    assert block_words(group, k) == expected


@pytest.mark.parametrize("group", [16, 32, 48, 64, 96, 128, 256, 512, 768])
def test_scales_lie_beside_the_blocks_that_they_are_for(group: int) -> None:
    k = 1100
    bw = block_words(group, k)
    assert bw is not None
    cut = ScaleCut.of(group, bw)
    scales = torch.arange(3 * -(-k // group), dtype=torch.float32).view(3, -1)
    packed = pack_scales(scales, group, k)
    for column in (0, 130, 600, k - 1):
        block = column // (8 * bw)
        part = column % (8 * bw) // (8 // cut.parts * bw) if cut.blocks == 1 else 0
        assert torch.equal(packed[block // cut.blocks, :, part], scales[:, column // group])
    assert packed.shape == (cut.count(k), 3, cut.parts)
