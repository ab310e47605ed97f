"""The `fp8` layout on the CPU, against its definition."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from fp8_weights import NAN, Fp8Case
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.errors import LayoutError
from tersor.kernels.fp8 import Fp8Layout, reference
from tersor.kernels.fp8.decode import LOWERED, widen
from tersor.kernels.gated import gated

CPU = torch.device("cpu")
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (300, 260)]
BLOCKS = pytest.mark.parametrize("block", [0, 128])


def layout_of(case: Fp8Case, **params: str) -> Fp8Layout:
    n, k = case.codes.shape
    return Fp8Layout.from_planes(
        case.planes, (n, k), torch.bfloat16, {**case.params, **params}, CPU
    )


def test_every_code_is_decoded_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    finite = (codes & NAN) != NAN
    expected = codes.view(torch.float8_e4m3fn).to(torch.float32)
    assert torch.equal(widen(codes)[finite] * LOWERED, expected[finite])


@BLOCKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul_agrees_with_the_definition(n: int, k: int, dtype: torch.dtype, block: int) -> None:
    case = Fp8Case.random(n, k, block=block)
    layout = layout_of(case)
    tolerance = TOLERANCES["fp32" if dtype == torch.float32 else "bf16"]
    for m in (1, 2, 17, 65):
        x = activations(m, k, dtype)
        for bias in (None, activations(1, n, seed=3)[0]):
            with poisoned_memory():
                y = layout.matmul(x, bias)
            assert (y.dtype, tuple(y.shape)) == (dtype, (m, n))
            assert_matmul_close(y, x, case.weight, case.weight.abs(), bias, tolerance)


@BLOCKS
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_dense_and_rows_decode_exactly(n: int, k: int, block: int) -> None:
    case = Fp8Case.random(n, k, block=block)
    layout = layout_of(case)
    assert torch.equal(layout.dense(torch.float32), case.weight)
    assert layout.dense().dtype == torch.bfloat16
    indices = torch.tensor([[0, n - 1], [n // 2, 0]])
    assert torch.equal(layout.rows(indices, torch.float32), case.weight[indices])


@BLOCKS
def test_planes_are_cut_at_blocks(block: int) -> None:
    case = Fp8Case.random(300, 40, block=block)
    for start, stop in ((0, 128), (128, 384)):
        part = Fp8Layout.rows_of_planes(case.planes, start, stop, case.params)
        shape = tuple(case.codes[start:stop].shape)
        layout = Fp8Layout.from_planes(part, shape, torch.bfloat16, case.params, CPU)
        assert torch.equal(layout.dense(torch.float32), case.weight[start:stop])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_activations_are_e4m3_numbers_times_a_power_of_two(dtype: torch.dtype) -> None:
    x = activations(6, 500, dtype)
    x[0] = 0
    x[1, 0] = 448
    x[2, 0] = 449  # bf16 448: the next number is 450
    x[3, 0] = 450
    x[4] *= 2**-40
    scales = reference.token_scales(x)
    assert scales[:4, 0].tolist() == [1, 1, 1 if dtype == torch.bfloat16 else 2, 2]
    rounded = reference.round_tokens(x)
    assert rounded.dtype == dtype
    codes = rounded.float() / scales
    assert torch.equal(codes.to(torch.float8_e4m3fn).float(), codes)
    assert bool((codes.abs().amax(1)[1:] >= 224).all())
    error = (rounded - x).float().abs()
    # Half a step: 2^-4 of a normal number, 2^-10 below 2^-6.
    assert bool((error <= (x.float().abs() * 2**-4).maximum(scales * 2**-10)).all())


@BLOCKS
def test_activations_may_be_rounded_first(block: int) -> None:
    case = Fp8Case.random(20, 140, block=block)
    x = activations(3, 140)
    y = layout_of(case, activations="fp8").matmul(x)
    assert torch.equal(y, layout_of(case).matmul(reference.round_tokens(x)))
    expected = reference.matmul(x, case.codes, case.scales, fp8_activations=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-2)


def test_finishes() -> None:
    layout = layout_of(Fp8Case.random(20, 40, block=128))
    x, bias = activations(3, 40) * 2**-10, activations(1, 20, seed=3)[0]
    y = layout.matmul(x, bias)
    assert torch.equal(layout.partials(x, bias), y[None])
    assert torch.equal(layout.gated(x, bias, "silu"), gated(y, "silu"))
    assert layout.matmul(x.view(3, 1, 40)[:, :, :], bias).shape == (3, 1, 20)
    assert layout.matmul(x[:0]).shape == (0, 20)


def test_resident_bytes_are_a_byte_a_weight() -> None:
    assert layout_of(Fp8Case.random(64, 128, block=0)).resident_bytes == 64 * 128 + 64 * 4
    assert layout_of(Fp8Case.random(64, 128, block=128)).resident_bytes == 64 * 128 + 4


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan_is_refused_at_load(code: int) -> None:
    case = Fp8Case.random(5, 40, block=0)
    codes = case.codes.view(torch.uint8).clone()
    codes[4, 39] = code
    planes = {**case.planes, "codes": codes.view(torch.float8_e4m3fn)}
    with pytest.raises(LayoutError, match=r"`fp8\.codes` holds NaN"):
        Fp8Layout.from_planes(planes, (5, 40), torch.bfloat16, case.params, CPU)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"takes the parameter `block` and may take `activations`, got \[\]"),
        ({"block": 0, "step": 1}, r"got \['block', 'step'\]"),
        ({"block": 64}, r"must be 0 \(a scale per row\) or 128, got 64"),
        ({"block": False}, "or 128, got False"),
        ({"block": "128"}, "or 128, got '128'"),
        ({"block": 0, "activations": "int8"}, "must be 'fp8' or absent, got 'int8'"),
        ({"block": 0, "activations": None}, "must be 'fp8' or absent, got None"),
    ],
)
def test_other_parameters_are_refused(params: Mapping[str, str | int | None], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Fp8Layout.plane_specs((4, 8), torch.bfloat16, params)


def test_planes_must_be_the_declared_ones() -> None:
    rows, blocks = (Fp8Case.random(4, 200, block=block) for block in (0, 128))
    with pytest.raises(LayoutError, match=r"`fp8.scales` has shape \[4\], expected \[1, 2\]"):
        Fp8Layout.from_planes(rows.planes, (4, 200), torch.bfloat16, blocks.params, CPU)
    planes = {**rows.planes, "codes": rows.codes.view(torch.uint8)}
    with pytest.raises(LayoutError, match=r"`fp8.codes` has dtype torch.uint8, expected"):
        Fp8Layout.from_planes(planes, (4, 200), torch.bfloat16, rows.params, CPU)
    with pytest.raises(LayoutError, match=r"matrices \[N, K\].*got shape \[4\]"):
        Fp8Layout.plane_specs((4,), torch.bfloat16, rows.params)
