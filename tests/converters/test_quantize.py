"""Quantizers against plain round-to-nearest and against the layouts that will compute on them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tersor.converters.quantize import (
    Quantized,
    quantize_fp8,
    quantize_int4,
    quantize_int6,
    quantize_int8,
)
from tersor.converters.quantize.base import CHUNK_ELEMENTS
from tersor.converters.quantize.reference import round_fp8, round_int4, round_int8
from tersor.kernels.fp8.reference import dequantize as dequantize_fp8
from tersor.kernels.int4.reference import dequantize as dequantize_int4
from tersor.kernels.int6.reference import dequantize as dequantize_int6
from tersor.kernels.int8.reference import dequantize as dequantize_int8
from tersor.kernels.layout import layouts
from tersor.kernels.outliers.reference import scatter

SHAPES = [(1, 1), (3, 31), (5, 32), (7, 33), (64, 129), (129, 256)]
GROUPS = [(32, False), (32, True), (64, False), (0, False), (0, True)]


def weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Heavy tails and rows of very different size, as in trained models."""
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    normal = torch.randn(shape, generator=generator)
    rows = torch.rand((shape[0], 1), generator=generator) + 0.01
    return (normal * normal.abs() * rows).to(dtype)


def decode(quantized: Quantized) -> Tensor:
    planes = {name: tensor for name, (_dtype, tensor) in quantized.planes.items()}
    if quantized.layout == "int8":
        return dequantize_int8(planes["codes"], planes["scales"])
    if quantized.layout == "fp8":
        return dequantize_fp8(planes["codes"], planes["scales"])
    if quantized.layout == "int6":
        decoded = dequantize_int6(planes["codes"], planes["scales"])
    else:
        group = int(quantized.params["group"])
        decoded = dequantize_int4(planes["codes"], planes["scales"], planes.get("zeros"), group)
    if "outlier_values" not in planes:
        return decoded
    return decoded + scatter(planes["outlier_positions"], planes["outlier_values"], *decoded.shape)


def steps_and_outliers(w: Tensor, outliers: float) -> list[Quantized]:
    """What int6 and int4 make of w with every kind of step, and this share of outliers."""
    return [
        quantize_int6(w, outliers=outliers),
        quantize_int6(w, step="tensor", outliers=outliers),
        quantize_int4(w, outliers=outliers),
        quantize_int4(w, group=0, symmetric=True, outliers=outliers),
        quantize_int4(w, group=0, step="tensor", outliers=outliers),
        quantize_int4(w, group=0, symmetric=True, step="tensor", outliers=outliers),
    ]


def row_errors(decoded: Tensor, w: Tensor) -> Tensor:
    return (decoded - w.float()).double().square().sum(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_never_loses_to_round_to_nearest(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = weight(shape, dtype)
    ours = row_errors(decode(quantize_int8(w)), w)
    plain = row_errors(dequantize_int8(*round_int8(w)), w)
    assert (ours <= plain * (1 + 1e-6) + 1e-12).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_with_one_step_never_loses_to_round_to_nearest(shape: tuple[int, int]) -> None:
    w = weight(shape)
    quantized = quantize_int8(w, step="tensor")
    assert quantized.params == {"step": "tensor"}
    codes, scales = round_int8(w.view(1, -1))
    plain = row_errors(dequantize_int8(codes, scales).view(shape), w).sum()
    assert row_errors(decode(quantized), w).sum() <= plain * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("block", [0, 128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_never_loses_to_round_to_nearest(
    shape: tuple[int, int], block: int, dtype: torch.dtype
) -> None:
    w = weight(shape, dtype)
    ours = decode(quantize_fp8(w, block=block))
    plain = dequantize_fp8(*round_fp8(w, block))
    assert row_errors(ours, w).sum() <= row_errors(plain, w).sum() * (1 + 1e-6) + 1e-12


def test_the_search_of_fp8_pays() -> None:
    w = weight((256, 512))
    ours = row_errors(decode(quantize_fp8(w)), w).sum()
    assert ours < 0.96 * row_errors(dequantize_fp8(*round_fp8(w, 0)), w).sum()


def test_rounded_activations_are_a_parameter() -> None:
    w = weight((5, 32))
    assert quantize_int8(w, activations="int8").params == {"activations": "int8"}
    assert quantize_fp8(w, activations="fp8").params == {"block": 0, "activations": "fp8"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("group", "symmetric"), GROUPS)
def test_int4_never_loses_to_round_to_nearest(
    shape: tuple[int, int], group: int, symmetric: bool
) -> None:
    w = weight(shape)
    ours = decode(quantize_int4(w, group=group, symmetric=symmetric))
    codes, scales, zeros = round_int4(w, group, symmetric=symmetric)
    plain = dequantize_int4(codes, scales, zeros, group)
    assert (row_errors(ours, w) <= row_errors(plain, w) * (1 + 1e-6) + 1e-12).all()


def test_the_search_pays() -> None:
    w = weight((256, 512))
    ours = row_errors(decode(quantize_int4(w)), w).sum()
    codes, scales, zeros = round_int4(w, 32, symmetric=False)
    plain = row_errors(dequantize_int4(codes, scales, zeros, 32), w).sum()
    assert ours < 0.97 * plain


@pytest.mark.parametrize(("group", "symmetric"), GROUPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_planes_are_those_of_the_layout(
    shape: tuple[int, int], group: int, symmetric: bool
) -> None:
    w = weight(shape, torch.bfloat16)
    for quantized in (
        quantize_int8(w),
        quantize_int8(w, step="tensor", activations="int8"),
        quantize_int4(w, group=group, symmetric=symmetric),
        quantize_fp8(w, activations="fp8"),
        quantize_fp8(w, block=128),
        *steps_and_outliers(w, 0),
        *steps_and_outliers(w, 0.01),
    ):
        layout = layouts()[quantized.layout]
        specs = layout.plane_specs(shape, torch.bfloat16, quantized.params)
        found = {name: (dtype, tuple(t.shape)) for name, (dtype, t) in quantized.planes.items()}
        assert found == {name: (spec.dtype, tuple(spec.shape)) for name, spec in specs.items()}


@pytest.mark.parametrize("symmetric", [False, True])
def test_zeros_stay_zero_and_the_reported_error_is_the_real_one(symmetric: bool) -> None:
    w = weight((48, 100))
    w[torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    w[3] = 0
    w[5, :32] = 0
    w[7] = w[7].abs()
    w[9] = -w[9].abs()
    for quantized in (
        quantize_int8(w),
        quantize_int8(w, step="tensor"),
        quantize_int4(w, group=32, symmetric=symmetric),
        quantize_fp8(w),
        quantize_fp8(w, block=128),
        *steps_and_outliers(w, 0),
        *steps_and_outliers(w, 0.01),
    ):
        decoded = decode(quantized)
        assert (decoded[w == 0] == 0).all()
        expected = float(row_errors(decoded, w).sum())
        assert quantized.squared_error == pytest.approx(expected, rel=1e-4)


def test_extreme_weights_decode_to_finite_values() -> None:
    w = torch.zeros((4, 64))
    w[0, 0] = 1e-41  # a scale this small is zero in bf16
    w[1] = 3e38
    w[2, ::2] = -3e38
    w[3] = 1e-30
    for quantized in (quantize_int8(w), quantize_int4(w), quantize_fp8(w)):
        decoded = decode(quantized)
        assert decoded.isfinite().all()
        assert torch.allclose(decoded[1], w[1], rtol=0.01)
    whole = decode(quantize_fp8(w, block=128))
    assert torch.allclose(whole[1], w[1], rtol=0.01)
    for quantized in steps_and_outliers(w, 0.02):
        assert decode(quantized).isfinite().all()


def test_outliers_pay() -> None:
    w = weight((256, 512))
    for without, with_outliers in zip(
        steps_and_outliers(w, 0), steps_and_outliers(w, 0.005), strict=True
    ):
        assert with_outliers.squared_error < 0.8 * without.squared_error
        assert len(with_outliers.planes["outlier_values"][1]) == round(0.005 * w.numel())


def test_int6_lies_between_its_neighbours_and_a_row_step_below_a_tensor_step() -> None:
    w = weight((256, 512))
    errors = {
        "int8": quantize_int8(w).squared_error,
        "int6 row": quantize_int6(w).squared_error,
        "int6 tensor": quantize_int6(w, step="tensor").squared_error,
        "int4 tensor": quantize_int4(w, group=0, step="tensor").squared_error,
    }
    assert list(errors.values()) == sorted(errors.values())


def test_outliers_of_several_chunks_ascend_and_add_up_to_the_share() -> None:
    columns = 1024
    w = weight((2 * CHUNK_ELEMENTS // columns + 3, columns))
    for quantized in (quantize_int6(w, outliers=0.003), quantize_int4(w, outliers=0.003)):
        positions = quantized.planes["outlier_positions"][1].to(torch.int64)
        assert len(positions) == round(0.003 * w.numel()) == quantized.params["outliers"]
        assert (positions[1:] > positions[:-1]).all()


def test_chunks_do_not_change_the_result() -> None:
    columns = 1024
    rows = 2 * CHUNK_ELEMENTS // columns + 3
    w = weight((rows, columns))
    whole = quantize_int4(w)
    part = quantize_int4(w[-3:])
    for name in ("codes", "scales", "zeros"):
        assert torch.equal(whole.planes[name][1][-3:], part.planes[name][1])
