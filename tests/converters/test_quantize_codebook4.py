"""Codebook quantizers and bitmaps against plain rounding and the layouts that compute on them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tersor.converters.quantize import Quantized, quantize_bitmap, quantize_codebook4
from tersor.converters.quantize.tables import CODEBOOKS
from tersor.kernels.layout import layouts

METHODS = [("nf4", 64), ("nf4", 0), ("pow2", 64), ("mxfp4", 32), ("nvfp4", 16)]
SHAPES = [(1, 1), (3, 31), (7, 33), (64, 129)]
CPU = torch.device("cpu")


def weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Heavy tails and rows of very different size, as in trained models."""
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    normal = torch.randn(shape, generator=generator)
    rows = torch.rand((shape[0], 1), generator=generator) + 0.01
    return (normal * normal.abs() * rows).to(dtype)


def decode(quantized: Quantized, shape: tuple[int, int]) -> Tensor:
    """By the layout itself, which checks the planes, too."""
    layout = layouts()[quantized.layout]
    specs = layout.plane_specs(shape, torch.float32, quantized.params)
    made = {name: dtype for name, (dtype, _) in quantized.planes.items()}
    assert made == {name: spec.dtype for name, spec in specs.items()}
    planes = {name: tensor for name, (_, tensor) in quantized.planes.items()}
    built = layout.from_planes(planes, shape, torch.float32, quantized.params, CPU)
    return built.dense(torch.float32)


def squared_error(decoded: Tensor, w: Tensor) -> float:
    return float((decoded.double() - w.double()).square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "group"), METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reported_error_is_that_of_the_layout(
    shape: tuple[int, int], method: str, group: int, dtype: torch.dtype
) -> None:
    w = weight(shape, dtype)
    quantized = quantize_codebook4(w, method, group=group)
    error = squared_error(decode(quantized, shape), w)
    assert math.isclose(quantized.squared_error, error, rel_tol=1e-4, abs_tol=1e-12)


@pytest.mark.parametrize(("method", "group"), METHODS)
def test_never_worse_than_the_largest_value_at_the_top(method: str, group: int) -> None:
    w = weight((64, 128))
    ours = quantize_codebook4(w, method, group=group).squared_error
    book = CODEBOOKS[method]
    table = torch.tensor(book.values)
    groups = w.view(64, -1, group or 128)
    scale = groups.abs().amax(-1, keepdim=True) / table.abs().max()
    if book.scale == "e8m0":
        scale = (1.5 * scale).log2().floor().exp2()
    distance = (groups[..., None] / scale[..., None] - table).abs().amin(-1) * scale
    assert ours <= 1.01 * float(distance.double().square().sum())  # scales rounded to bf16, e4m3


@pytest.mark.parametrize(("method", "group"), METHODS)
def test_zeros_stay_zero(method: str, group: int) -> None:
    w = weight((8, 128))
    w[:, ::2] = 0
    w[3] = 0
    decoded = decode(quantize_codebook4(w, method, group=group), (8, 128))
    assert not decoded[w == 0].any()


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize(("method", "group"), METHODS)
def test_extreme_weights_stay_finite(method: str, group: int, size: float) -> None:
    w = weight((4, 64)) * size
    decoded = decode(quantize_codebook4(w, method, group=group), (4, 64))
    assert squared_error(decoded / size, w / size) < 0.1 * float((w / size).square().sum())


def test_mxfp4_keeps_what_it_can_represent() -> None:
    codes = torch.arange(32, dtype=torch.int32) % 16
    w = torch.tensor(CODEBOOKS["mxfp4"].values)[codes].view(1, 32) * 2.0**-9
    quantized = quantize_codebook4(w, "mxfp4", group=32)
    assert quantized.squared_error == 0
    assert quantized.planes["scales"][1].tolist() == [[118]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_bitmap_is_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = weight(shape, dtype)
    w[:, ::3] = 0
    w[0, 0] = -0.0
    quantized = quantize_bitmap(w)
    decoded = decode(quantized, shape)
    assert torch.equal(decoded, w.float())
    assert bool(decoded[0, 0].signbit())
    kept = w.float().view(torch.int32).count_nonzero()  # with -0
    assert quantized.params["nonzeros"] == int(kept)
    assert quantized.squared_error == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_bitmap_of_bytes_drops_what_rounds_to_zero(shape: tuple[int, int]) -> None:
    w = weight(shape)
    w[:, ::2] = 0
    quantized = quantize_bitmap(w, values="int8")
    decoded = decode(quantized, shape)
    assert not decoded[w == 0].any()
    assert quantized.params["nonzeros"] == int(decoded.count_nonzero())
    error = squared_error(decoded, w)
    assert math.isclose(quantized.squared_error, error, rel_tol=1e-4, abs_tol=1e-12)
