"""The fp8 kernels on a CUDA device, against float64."""

from __future__ import annotations

import pytest
import torch
from fp8_weights import Fp8Case
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.fp8 import Fp8Layout, reference
from tersor.kernels.fp8.prefill import can_scale_fp8
from tersor.kernels.gated import gated
from tersor.kernels.gemv.config import GEMM_MIN_ROWS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (130, 2100), (4096, 4096)]
BATCHES = [1, 2, 3, 8, 17, GEMM_MIN_ROWS - 1, GEMM_MIN_ROWS, 200]
BLOCKS = pytest.mark.parametrize("block", [0, 128])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


def _layout(case: Fp8Case, **params: str) -> Fp8Layout:
    n, k = case.codes.shape
    return Fp8Layout.from_planes(
        case.planes, (n, k), torch.bfloat16, {**case.params, **params}, GPU
    )


@BLOCKS
def test_every_code_is_multiplied_exactly(block: int) -> None:
    case = Fp8Case.random(256, 256, block=block)
    layout = _layout(case)
    identity = torch.eye(256, dtype=torch.float32, device=GPU)
    for part in identity.split(32):  # one product a result: nothing to round but float32
        first = int(part[0].argmax())
        expected = case.weight.T[first : first + 32]
        assert torch.equal(layout.matmul(part.contiguous()).cpu(), expected)


@BLOCKS
@DTYPES
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul(n: int, k: int, dtype: torch.dtype, block: int) -> None:
    case = Fp8Case.random(n, k, block=block)
    layout, weight = _layout(case), case.weight.to(GPU)
    for m in BATCHES:
        x = activations(m, k, dtype).to(GPU)
        bias = activations(1, n, seed=3)[0].to(GPU) if m % 2 else None
        with poisoned_memory():
            y = layout.matmul(x, bias)
        assert y.dtype == dtype
        assert_matmul_close(y, x, weight, weight.abs(), bias, TOLERANCES["bf16"])


@DTYPES
def test_activations_are_rounded_as_defined(dtype: torch.dtype) -> None:
    from tersor.kernels.fp8 import triton

    x = activations(6, 2100, dtype)
    x[1] = 0
    x[2] *= 1e-35
    x[4, 0] = 448
    x[5, 0] = 450
    assert torch.equal(triton.round_tokens(x.to(GPU)).cpu(), reference.round_tokens(x))


@BLOCKS
@pytest.mark.parametrize(("n", "k"), [(63, 129), (130, 2100), (4096, 4096)])
def test_products_of_rounded_activations(n: int, k: int, block: int) -> None:
    case = Fp8Case.random(n, k, block=block)
    layout = _layout(case, activations="fp8")
    for m in (1, 17, GEMM_MIN_ROWS, 200):
        x = activations(m, k, torch.bfloat16)
        y = layout.matmul(x.to(GPU))
        rounded = reference.round_tokens(x)
        assert_matmul_close(y, rounded, case.weight, case.weight.abs(), None, TOLERANCES["bf16"])


def test_many_rows_of_rounded_activations_take_the_fp8_product() -> None:
    case = Fp8Case.random(4096, 4096, block=0)
    packed, scales = case.packed.to(GPU), case.scales.to(GPU)
    expected = torch.version.hip is None and torch.cuda.get_device_capability(GPU) >= (8, 9)
    assert can_scale_fp8(packed, scales) == expected


@BLOCKS
def test_rows_do_not_depend_on_the_batch(block: int) -> None:
    case = Fp8Case.random(130, 4096, block=block)
    x = activations(GEMM_MIN_ROWS - 1, 4096, torch.bfloat16).to(GPU)
    for layout in (_layout(case), _layout(case, activations="fp8")):
        whole = layout.matmul(x)
        for m in (1, 2, 8, 9, 16, 17, 33):
            assert torch.equal(layout.matmul(x[:m]), whole[:m])


@BLOCKS
def test_the_portable_kernel_makes_the_same_bits(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersor.kernels.fp8 import triton

    layout = _layout(Fp8Case.random(129, 700, block=block))
    x = activations(5, 700, torch.bfloat16).to(GPU)
    with_assembly = layout.matmul(x)
    monkeypatch.setattr(triton, "has_inline_asm", lambda _: False)
    assert torch.equal(layout.matmul(x), with_assembly)


@BLOCKS
@pytest.mark.parametrize("m", [3, 200])
def test_finishes(m: int, block: int) -> None:
    layout = _layout(Fp8Case.random(512, 4096, block=block))
    x = (activations(m, 4096) * 2**-12).to(GPU)
    y = layout.matmul(x)
    torch.testing.assert_close(layout.partials(x).sum(0), y, rtol=1e-5, atol=1e-5)
    result = layout.gated(x, None, "silu")
    torch.testing.assert_close(result, gated(y, "silu"), rtol=1e-4, atol=1e-4)


@BLOCKS
def test_decoding_and_looking_up(block: int) -> None:
    case = Fp8Case.random(300, 260, block=block)
    layout = _layout(case)
    assert torch.equal(layout.dense(torch.float32).cpu(), case.weight)
    rows = layout.rows(torch.tensor([299, 0], device=GPU), torch.float32)
    assert torch.equal(rows.cpu(), case.weight[[299, 0]])
