"""The w8a8 kernels on a CUDA device, against their definition: bit for bit."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import Int8Case, activations
from poison import poisoned_memory

from tersor.kernels.gated import gated
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.int8 import Int8Layout
from tersor.kernels.int8.packing import pack
from tersor.kernels.int8.w8a8 import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
# N = 128 goes through cuBLASLt from GEMM_MIN_ROWS rows on, the others do not.
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (130, 2100), (128, 4096)]
BATCHES = [1, 2, 3, 8, 17, GEMM_MIN_ROWS - 1, GEMM_MIN_ROWS, 200]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


def _layout(case: Int8Case) -> Int8Layout:
    n, k = case.codes.shape
    params = {"activations": "int8"}
    return Int8Layout.from_planes(case.planes, (n, k), torch.bfloat16, params, GPU)


@DTYPES
@pytest.mark.parametrize("k", [1, 129, 1024, 2100])
def test_activations_are_quantized_as_defined(k: int, dtype: torch.dtype) -> None:
    from tersor.kernels.int8.w8a8 import triton

    x = activations(4, k, dtype)
    x[1] = 0
    x[2] *= 1e-35
    x[3] *= 1e30
    codes, scales = triton.quantize_tokens(x.to(GPU), -(-k // 32) * 32)
    expected = reference.quantize_tokens(x, codes.shape[1])
    assert torch.equal(codes.cpu(), expected[0])
    assert torch.equal(scales.cpu(), expected[1])


@DTYPES
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul(n: int, k: int, dtype: torch.dtype) -> None:
    case = Int8Case.random(n, k)
    layout = _layout(case)
    for m in BATCHES:
        x = activations(m, k, dtype)
        bias = activations(1, n, seed=3)[0] if m % 2 else None
        with poisoned_memory():
            y = layout.matmul(x.to(GPU), None if bias is None else bias.to(GPU))
        # Sums of integers are exact, and everything after them is done in one order.
        expected = reference.matmul(x, pack(case.codes), case.scales, bias).to(dtype)
        assert torch.equal(y.cpu(), expected)


def test_rows_do_not_depend_on_the_batch() -> None:
    layout = _layout(Int8Case.random(128, 4096))
    x = activations(200, 4096, torch.bfloat16).to(GPU)
    whole = layout.matmul(x)
    for m in (1, 2, 9, 33, GEMM_MIN_ROWS - 1, GEMM_MIN_ROWS):
        assert torch.equal(layout.matmul(x[:m]), whole[:m])


@pytest.mark.parametrize("n", [512, 4096])  # split and not
@pytest.mark.parametrize("m", [3, 200])
def test_finishes(n: int, m: int) -> None:
    layout = _layout(Int8Case.random(n, 4096))
    x = (activations(m, 4096) * 2**-12).to(GPU)
    y = layout.matmul(x)
    assert torch.equal(layout.partials(x), y[None])
    result = layout.gated(x, None, "silu")
    torch.testing.assert_close(result, gated(y, "silu"), rtol=1e-5, atol=1e-5)


def test_nan_stays_in_its_token() -> None:
    layout = _layout(Int8Case.random(130, 2100))
    x = activations(3, 2100, torch.bfloat16).to(GPU)
    x[1, 5] = float("nan")
    y = layout.matmul(x)
    assert bool(y[1].isnan().all())
    assert bool(y[[0, 2]].isfinite().all())


def test_the_portable_w8a16_kernel_makes_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.kernels.int8 import triton

    case = Int8Case.random(129, 700)
    case.codes[0, :256] = torch.arange(-128, 128).to(torch.int8)
    layout = Int8Layout.from_planes(case.planes, (129, 700), torch.bfloat16, {}, GPU)
    x = activations(5, 700, torch.bfloat16).to(GPU)
    with_assembly = layout.matmul(x)
    monkeypatch.setattr(triton, "has_inline_asm", lambda _: False)
    assert torch.equal(layout.matmul(x), with_assembly)
