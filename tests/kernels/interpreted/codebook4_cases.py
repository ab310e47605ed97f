"""The codebook4 kernels under Triton's interpreter. Run by ../test_triton_interpreted.py.

Tables and scales are those of the kernel (rounded to bf16), and the interpreter multiplies in
float32, so results differ from the definition by the order of sums alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from codebook4_case import Codebook4Case
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory

from tersor.kernels.codebook4 import triton as codebook4
from tersor.kernels.errors import LayoutError
from tersor.kernels.gated import gated
from tersor.kernels.gemv import launch
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.finish import Finish, finish_of

SPLIT_SHAPE = (3, 2100)  # nine blocks of words: K is split


@pytest.mark.parametrize(
    ("n", "k", "m", "group", "scale"),
    [
        (1, 1, 1, 16, "e4m3"),
        (3, 7, 3, 0, "bf16"),
        (129, 63, 8, 16, "bf16"),
        (63, 129, 17, 0, "f32"),
        (63, 129, 17, 16, "e4m3"),
        (63, 129, 2, 32, "f32"),
        (65, 256, 8, 32, "e8m0"),
        (5, 300, 1, 64, "bf16"),
        (5, 300, 9, 96, "e8m0"),
        (5, 300, 1, 128, "e4m3"),
    ],
)
def test_matmul_and_decode(n: int, k: int, m: int, group: int, scale: str) -> None:
    case = Codebook4Case.random(n, k, group=group, scale=scale)
    x = activations(m, k)
    bias = activations(1, n, seed=3)[0] if m != 8 else None
    with poisoned_memory():
        y = codebook4.matmul(x, case.packed(), bias)
        decoded = codebook4.decode(case.packed(), torch.float32, n // 2, n + 5)
    assert_matmul_close(y, x, case.rounded, case.rounded.abs(), bias, TOLERANCES["fp32"])
    assert torch.equal(decoded, case.rounded[n // 2 :])


@pytest.mark.parametrize("m", [1, 17])
def test_matmul_with_k_split(m: int) -> None:
    case = Codebook4Case.random(*SPLIT_SHAPE, group=32, scale="e8m0", fp4=True)
    x, bias = activations(m, SPLIT_SHAPE[1]), torch.ones(SPLIT_SHAPE[0])
    with poisoned_memory():
        y = codebook4.matmul(x, case.packed(), bias)
    assert_matmul_close(y, x, case.weight, case.weight.abs(), bias, TOLERANCES["fp32"])


def test_many_rows_decode_the_weight_once_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "DECODED_ELEMENTS", 40 * 33)
    case = Codebook4Case.random(70, 40, group=16, scale="e4m3")
    x, bias = activations(GEMM_MIN_ROWS, 40), activations(1, 70, seed=3)[0]
    with poisoned_memory():
        y = codebook4.matmul(x, case.packed(), bias)
    assert_matmul_close(y, x, case.rounded, case.rounded.abs(), bias, TOLERANCES["bf16"])


@pytest.mark.parametrize("finish", ["partials", "silu", "gelu"])
@pytest.mark.parametrize(("n", "k"), [(6, 40), (6, 2100)])
def test_finishes(n: int, k: int, finish: str) -> None:
    weight = Codebook4Case.random(n, k, group=32, scale="bf16").packed()
    # Small: exp overflows into a warning in the interpreter, not on a GPU.
    x, bias = activations(3, k) * 2**-14, activations(1, n, seed=3)[0]
    kind = finish_of(finish, n)
    with poisoned_memory():
        whole = codebook4.matmul(x, weight, bias)
        got = codebook4.matmul(x, weight, bias, kind)
    expected = whole if kind is Finish.PARTIALS else gated(whole, finish)
    torch.testing.assert_close(got.sum(0) if kind is Finish.PARTIALS else got, expected)


def test_launchers_name_the_argument_that_does_not_fit() -> None:
    weight = Codebook4Case.random(5, 40, group=32, scale="bf16").packed()
    x = activations(2, 40)
    with pytest.raises(LayoutError, match=r"`x` has shape \[2, 39\], expected \[any, 40\]"):
        codebook4.matmul(activations(2, 39), weight, None)
    with pytest.raises(LayoutError, match=r"`words` has shape \[5, 31\], expected \[any, 32\]"):
        codebook4.matmul(x, replace(weight, words=weight.words[:, :31].contiguous()), None)
    with pytest.raises(LayoutError, match=r"`scales` has dtype torch\.float32"):
        codebook4.matmul(x, replace(weight, scales=weight.scales.float()), None)
    with pytest.raises(LayoutError, match=r"`lookup` has shape \[8\], expected \[264\]"):
        codebook4.matmul(x, replace(weight, lookup=weight.lookup[:8]), None)
