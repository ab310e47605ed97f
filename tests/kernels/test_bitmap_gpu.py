"""The bitmap kernels on a CUDA device, against float64."""

from __future__ import annotations

import pytest
import torch
from bitmap_case import BitmapCase
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.bitmap import BitmapLayout
from tersor.kernels.gemv.config import GEMM_MIN_ROWS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (130, 2100), (5, 1 << 15), (4096, 4096)]
BATCHES = [1, 2, 3, 8, 17, GEMM_MIN_ROWS - 1, GEMM_MIN_ROWS, 200]


def _layout(case: BitmapCase) -> BitmapLayout:
    shape = (case.planes["bitmap"].shape[0], case.k)
    return BitmapLayout.from_planes(case.planes, shape, torch.bfloat16, case.params, GPU)


@pytest.mark.parametrize("values", ["bf16", "f16", "f32", "int8"])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_matmul(n: int, k: int, density: float, values: str) -> None:
    case = BitmapCase.random(n, k, density=density, values=values)
    layout, weight = _layout(case), case.weight.to(GPU)
    for index, m in enumerate(BATCHES):
        # Each with a bias and without, in both tiles.
        dtype = torch.bfloat16 if index % 3 else torch.float32
        x = activations(m, k, dtype).to(GPU)
        bias = activations(1, n, seed=3)[0].to(GPU) if m % 2 else None
        with poisoned_memory():
            y = layout.matmul(x, bias)
        assert y.dtype == dtype
        assert_matmul_close(y, x, weight, weight.abs(), bias, TOLERANCES["bf16"])


def test_rows_do_not_depend_on_the_batch() -> None:
    layout = _layout(BitmapCase.random(130, 4096))
    x = activations(GEMM_MIN_ROWS - 1, 4096, torch.bfloat16).to(GPU)
    whole = layout.matmul(x)
    for m in (1, 2, 8, 9, 16, 17, 33):
        assert torch.equal(layout.matmul(x[:m]), whole[:m])


def test_the_portable_kernel_makes_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.kernels.bitmap import triton as bitmap

    layout = _layout(BitmapCase.random(129, 700))
    x = activations(5, 700, torch.bfloat16).to(GPU)
    with_assembly = layout.matmul(x)
    monkeypatch.setattr(bitmap, "has_inline_asm", lambda _: False)
    assert torch.equal(layout.matmul(x), with_assembly)


@pytest.mark.parametrize("values", ["bf16", "f32", "int8"])
def test_decodes_and_looks_up(values: str) -> None:
    case = BitmapCase.random(63, 300, values=values)
    layout = _layout(case)
    assert torch.equal(layout.dense(torch.float32).cpu(), case.weight)
    rows = layout.rows(torch.tensor([62, 0], device=GPU), torch.float32)
    assert torch.equal(rows.cpu(), case.weight[[62, 0]])
