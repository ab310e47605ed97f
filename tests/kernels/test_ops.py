"""The custom operators as torch's own tools see them."""

from __future__ import annotations

import pytest
import torch
from fp8_weights import Fp8Case
from kernel_cases import Int4Case, Int6Case, Int8Case, activations
from torch import Tensor, nn

from tersor.kernels.gemv import Finish
from tersor.kernels.int4 import Int4Layout, cpu
from tersor.kernels.int4.planes import Planes
from tersor.kernels.int4.tiles import TilesForm
from tersor.kernels.int4.words import WordsForm
from tersor.kernels.int6.forms import WordsForm as Int6Words
from tersor.kernels.int8 import Int8Layout
from tersor.kernels.int8.packing import pack
from tersor.kernels.outliers import SlicedOutliers, check_outliers

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def _planes(case: Int4Case) -> Planes:
    return Planes(codes=case.codes, scales=case.scales, zeros=case.zeros, group=case.group)


@DTYPES
@pytest.mark.parametrize("m", [1, 3, 64])
def test_int8_matmul_passes_opcheck(m: int, dtype: torch.dtype) -> None:
    case = Int8Case.random(5, 40)
    bias = torch.ones(5)
    for arguments in ((), (bias,)):
        torch.library.opcheck(
            torch.ops.tersor.int8_matmul.default,
            (activations(m, 40, dtype), pack(case.codes), case.scales, *arguments),
        )


@DTYPES
@pytest.mark.parametrize("finish", ["sum", "partials"])
def test_int8_matmul_w8a8_passes_opcheck(finish: str, dtype: torch.dtype) -> None:
    case = Int8Case.random(6, 40)
    for bias in (None, torch.ones(6)):
        torch.library.opcheck(
            torch.ops.tersor.int8_matmul_w8a8.default,
            (activations(3, 40, dtype), pack(case.codes), case.scales, bias, finish),
        )


@DTYPES
@pytest.mark.parametrize("block", [0, 128])
def test_fp8_matmul_passes_opcheck(block: int, dtype: torch.dtype) -> None:
    case = Fp8Case.random(6, 40, block=block)
    for arguments in ((False,), (True, torch.ones(6), "partials")):
        torch.library.opcheck(
            torch.ops.tersor.fp8_matmul.default,
            (activations(3, 40, dtype), case.packed, case.scales, *arguments),
        )


@DTYPES
@pytest.mark.parametrize("m", [1, 3, 128])
def test_int4_tiles_pass_opcheck(m: int, dtype: torch.dtype) -> None:
    rows = cpu.tile_rows()
    assert rows is not None
    form = TilesForm.pack(_planes(Int4Case.random(5, 40, group=32, symmetric=False)), 32, rows)
    torch.library.opcheck(
        torch.ops.tersor.int4_matmul_tiles.default,
        (activations(m, 40, dtype), form.tiles, form.scale_offset, form.n, form.group),
    )


@DTYPES
@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_words_pass_opcheck_and_agree_with_tiles(symmetric: bool, dtype: torch.dtype) -> None:
    case = Int4Case.random(5, 40, group=32, symmetric=symmetric)
    form = WordsForm.pack(_planes(case), 32)
    x = activations(3, 40, dtype)
    torch.library.opcheck(
        torch.ops.tersor.int4_matmul_words.default,
        (x, form.words, form.scales, form.zeros, form.group, torch.ones(5)),
    )
    assert torch.equal(form.dequantize(), case.weight)
    assert torch.equal(form.rows(torch.tensor([4, 0])), case.weight[[4, 0]])
    # One block of 32 words, with a scale (and zero) for each of its eight slices.
    assert form.nbytes == 5 * 32 * 4 + 5 * 8 * (2 if symmetric else 3)
    expected = x.float() @ case.weight.T
    torch.testing.assert_close(
        form.matmul(x, None, Finish.SUM).float(), expected, rtol=2**-8, atol=1e-4
    )


@DTYPES
def test_int6_words_with_outliers_pass_opcheck(dtype: torch.dtype) -> None:
    case = Int6Case.random(5, 40, outliers=9)
    found = check_outliers("int6", case.planes, 5, 40)
    assert found is not None
    form = Int6Words.pack(case.codes, case.scales, SlicedOutliers.pack(found))
    assert form.outliers is not None
    sparse = (form.outliers.entries, form.outliers.starts, form.outliers.longest)
    x = activations(3, 40, dtype)
    torch.library.opcheck(
        torch.ops.tersor.int6_matmul_words.default,
        (x, form.words, form.high, form.scales, torch.ones(5), "partials", *sparse),
    )
    torch.testing.assert_close(
        form.matmul(x, None, Finish.SUM).float(), x.float() @ case.weight.T, rtol=2**-8, atol=1e-3
    )


def test_int4_words_with_outliers_pass_opcheck() -> None:
    case = Int4Case.random(5, 40, group=0, symmetric=False, per_tensor=True, outliers=9)
    found = check_outliers("int4", case.planes, 5, 40)
    assert found is not None
    planes = Planes(codes=case.codes, scales=case.scales, zeros=case.zeros, group=40)
    form = WordsForm.pack(planes, 32, SlicedOutliers.pack(found))
    assert form.outliers is not None
    sparse = (form.outliers.entries, form.outliers.starts, form.outliers.longest)
    x = activations(3, 40)
    torch.library.opcheck(
        torch.ops.tersor.int4_matmul_words.default,
        (x, form.words, form.scales, form.zeros, form.group, None, "sum", *sparse),
    )
    torch.testing.assert_close(
        form.matmul(x, None, Finish.SUM), x @ case.weight.T, rtol=1e-4, atol=1e-3
    )
    assert torch.equal(form.dequantize(), case.weight)


class _TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        int8 = Int8Case.random(24, 40)
        int4 = Int4Case.random(9, 24, group=0, symmetric=False)
        device = torch.device("cpu")
        self.first = Int8Layout.from_planes(int8.planes, (24, 40), torch.bfloat16, {}, device)
        self.second = Int4Layout.from_planes(
            int4.planes, (9, 24), torch.bfloat16, int4.params, device
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.second.matmul(torch.relu(self.first.matmul(x)))


def test_layouts_compile_to_one_graph() -> None:
    model = _TwoLayers()
    x = activations(3, 40)
    with torch.inference_mode():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)
