"""The kernels of words under the interpreter: six bits, outliers, steps per tensor, other cuts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernel_cases import TOLERANCES, Int4Case, Int6Case, activations, assert_matmul_close
from poison import poisoned_memory
from torch import Tensor

from tersor.kernels.errors import LayoutError
from tersor.kernels.gemv import TileConfig, launch
from tersor.kernels.gemv.config import GEMM_MIN_ROWS
from tersor.kernels.gemv.config import tile_config as usual_config
from tersor.kernels.gemv.finish import Finish, finish_of
from tersor.kernels.int4 import triton as int4
from tersor.kernels.int4.packing import block_words, pack_scales, pack_words
from tersor.kernels.int6.packing import pack
from tersor.kernels.outliers import SlicedOutliers, check_outliers

Case = Int4Case | Int6Case
# 128 + code enters the products, and the kernel's float32 sums are of that size.
RAISED4, RAISED6 = 144 / 8, 192 / 32


def multiply(
    case: Case, x: Tensor, bias: Tensor | None = None, finish: Finish = Finish.SUM
) -> Tensor:
    n, k = case.codes.shape
    found = check_outliers("int4", case.planes, n, k)
    outliers = None if found is None else SlicedOutliers.pack(found)
    with poisoned_memory():
        if isinstance(case, Int6Case):
            words, high = pack(case.codes)
            return int4.matmul(x, words, high, case.scales, None, outliers, k, bias, finish)
        group = case.group or k
        bw = block_words(group, k)
        assert bw is not None
        zeros = None if case.zeros is None else pack_scales(case.zeros, group, k)
        scales = pack_scales(case.scales, group, k)
        words = pack_words(case.codes, bw)
        return int4.matmul(x, words, None, scales, zeros, outliers, group, bias, finish)


def assert_close(y: Tensor, case: Case, x: Tensor, bias: Tensor | None) -> None:
    raised = RAISED6 if isinstance(case, Int6Case) else RAISED4
    assert_matmul_close(y, x, case.weight, case.magnitude * raised, bias, TOLERANCES["fp32"])


CASES: dict[str, Callable[[int, int], Case]] = {
    "int4_tensor": lambda n, k: Int4Case.random(n, k, group=0, symmetric=True, per_tensor=True),
    "int4_tensor_zero": lambda n, k: Int4Case.random(
        n, k, group=0, symmetric=False, per_tensor=True
    ),
    "int4_row_outliers": lambda n, k: Int4Case.random(
        n, k, group=0, symmetric=False, outliers=-(-n * k // 20)
    ),
    "int4_g48_outliers": lambda n, k: Int4Case.random(n, k, group=48, symmetric=True, outliers=1),
    "int4_g256_zeros": lambda n, k: Int4Case.random(n, k, group=256, symmetric=False),
    "int6_row": Int6Case.random,
    "int6_tensor_outliers": lambda n, k: Int6Case.random(
        n, k, per_tensor=True, outliers=-(-n * k // 20)
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (3, 7, 3), (63, 129, 17), (33, 257, 1)])
def test_odd_shapes(n: int, k: int, m: int, name: str) -> None:
    case = CASES[name](n, k)
    x = activations(m, k)
    bias = activations(1, n, seed=3)[0] if m != 3 else None
    assert_close(multiply(case, x, bias), case, x, bias)


@pytest.mark.parametrize("name", ["int4_row_outliers", "int4_g48_outliers", "int6_row"])
@pytest.mark.parametrize("bn", [16, 128])
def test_every_cut_of_rows(name: str, bn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*args: str, **kwargs: object) -> TileConfig:
        return replace(usual_config(*args, **kwargs), bn=bn)  # type: ignore[arg-type]

    monkeypatch.setattr(launch, "tile_config", cut)
    case = CASES[name](38, 270)
    x = activations(2, 270) * 2**-14  # small: exp overflows into a warning in the interpreter
    y = multiply(case, x)
    assert_close(y, case, x, None)
    whole = multiply(case, x, finish=finish_of("silu", 38))
    gate, up = y[:, :19], y[:, 19:]
    torch.testing.assert_close(whole, torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("name", ["int4_row_outliers", "int6_tensor_outliers"])
def test_a_row_has_the_same_bits_in_every_batch_with_k_split(name: str) -> None:
    case = CASES[name](3, 2100)  # nine blocks of words: K is split
    x = activations(9, 2100)
    whole = multiply(case, x)
    assert_close(whole, case, x, None)
    for m in (1, 2):
        # The interpreter's products are numpy's, whose order of adding depends on their shape.
        torch.testing.assert_close(multiply(case, x[:m]), whole[:m], rtol=1e-4, atol=1e-2)
    partials = multiply(case, x, finish=Finish.PARTIALS)
    assert partials.shape[0] > 1
    torch.testing.assert_close(partials.sum(0), whole)


@pytest.mark.parametrize("name", ["int4_g48_outliers", "int4_tensor_zero", "int6_tensor_outliers"])
def test_many_rows_decode_the_weight_once_in_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "DECODED_ELEMENTS", 40 * 33)
    case = CASES[name](70, 40)
    x, bias = activations(GEMM_MIN_ROWS, 40), activations(1, 70, seed=3)[0]
    y = multiply(case, x, bias)
    # An outlier's weight is rounded to bf16 twice: before and after the value is added.
    assert_matmul_close(y, x, case.weight, case.magnitude * 2, bias, TOLERANCES["bf16"])


def test_six_bits_take_no_groups() -> None:
    case = Int6Case.random(5, 40)
    words, high = pack(case.codes)
    with pytest.raises(LayoutError, match="`group` is 32, expected at least K = 40"):
        int4.matmul(activations(1, 40), words, high, case.scales, None, None, 32, None)
