"""The bitmap kernels under Triton's interpreter. Run by ../test_triton_interpreted.py.

The interpreter multiplies in float32, so results differ by the order of sums alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bitmap_case import BitmapCase
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.bitmap import triton as bitmap
from tersor.kernels.errors import LayoutError
from tersor.kernels.gated import gated
from tersor.kernels.gemv import launch
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finish_of


@pytest.mark.parametrize(
    ("n", "k", "m", "density", "values"),
    [
        (1, 1, 1, 1.0, "bf16"),
        (3, 7, 3, 0.0, "f32"),
        (3, 7, 3, 0.5, "f16"),
        (63, 129, 17, 0.5, "bf16"),
        (129, 63, 8, 0.1, "int8"),
        (65, 256, 40, 1.0, "int8"),
        (3, 2100, 2, 0.3, "bf16"),  # K is split
    ],
)
def test_matmul_and_decode(n: int, k: int, m: int, density: float, values: str) -> None:
    case = BitmapCase.random(n, k, density=density, values=values)
    x = activations(m, k)
    bias = activations(1, n, seed=3)[0] if m != 8 else None
    with poisoned_memory():
        y = bitmap.matmul(x, case.packed(), bias)
        decoded = bitmap.decode(case.packed(), k, torch.float32, n // 2, n + 5)
    assert_matmul_close(y, x, case.weight, case.weight.abs(), bias, TOLERANCES["fp32"])
    if values == "int8":
        decoded = decoded * case.planes["scales"][n // 2 :, None].float()
    assert torch.equal(decoded, case.weight[n // 2 :])


def test_many_rows_decode_the_weight_once_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "DECODED_ELEMENTS", 40 * 33)
    case = BitmapCase.random(70, 40, values="int8")
    x, bias = activations(GEMM_MIN_ROWS, 40), activations(1, 70, seed=3)[0]
    with poisoned_memory():
        y = bitmap.matmul(x, case.packed(), bias)
    assert_matmul_close(y, x, case.weight, case.weight.abs(), bias, TOLERANCES["bf16"])


@pytest.mark.parametrize("finish", ["partials", "silu"])
@pytest.mark.parametrize(("n", "k"), [(6, 40), (6, 1100)])
def test_finishes(n: int, k: int, finish: str) -> None:
    weight = BitmapCase.random(n, k).packed()
    # Small: exp overflows into a warning in the interpreter, not on a GPU.
    x, bias = activations(3, k) * 2**-14, activations(1, n, seed=3)[0]
    kind = finish_of(finish, n)
    with poisoned_memory():
        whole = bitmap.matmul(x, weight, bias)
        got = bitmap.matmul(x, weight, bias, kind)
    expected = whole if kind is Finish.PARTIALS else gated(whole, finish)
    torch.testing.assert_close(got.sum(0) if kind is Finish.PARTIALS else got, expected)


def test_launchers_name_the_argument_that_does_not_fit() -> None:
    weight = BitmapCase.random(5, 40).packed()
    x = activations(2, 40)
    with pytest.raises(LayoutError, match=r"`words` has shape \[5, 4\], expected \[any, 8\]"):
        bitmap.matmul(activations(2, 129), weight, None)
    with pytest.raises(LayoutError, match=r"`starts` has dtype torch\.int64"):
        bitmap.matmul(x, replace(weight, starts=weight.starts.long()), None)
    with pytest.raises(LayoutError, match=r"`scales` has shape \[4\], expected \[5\]"):
        bitmap.matmul(x, replace(weight, scales=torch.ones(4).bfloat16()), None)
