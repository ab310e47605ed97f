from __future__ import annotations

import ptx
import pytest
import torch
from float12_cases import every_pattern, gaussian, hostile, packed, same_bits
from kernel_cases import TOLERANCES, activations, assert_matmul_close
from poison import poisoned_memory
from torch import Tensor

from tersor.kernels.dense import DenseLayout
from tersor.kernels.errors import LayoutError
from tersor.kernels.float12 import Float12Layout, packing
from tersor.kernels.float12.ops import float12_decode
from tersor.kernels.float12.packing import (
    BLOCK_COLUMNS,
    BW,
    interleaved,
    join_parts,
    pack,
    pack_parts,
)
from tersor.kernels.float12.words import WordsForm
from tersor.kernels.gated import gated

CPU = torch.device("cpu")
BF16 = torch.bfloat16
SHAPES = [(1, 1), (3, 7), (63, 129), (129, 63), (17, 300)]
NAMES = ("words", "bases", "offsets", "columns", "values")


def _layout(values: Tensor) -> Float12Layout:
    shape = tuple(values.shape)
    return Float12Layout.from_planes({"values": values.clone()}, shape, BF16, {}, CPU)


def _dense(values: Tensor) -> DenseLayout:
    shape = tuple(values.shape)
    return DenseLayout.from_planes({"values": values.clone()}, shape, BF16, {}, CPU)


def _parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """Exponents and mantissas as docs/format.md says of `float_split`."""
    bits = values.view(torch.int16).to(torch.int32) & 0xFFFF
    rotated = ((bits << 1) | (bits >> 15)) & 0xFFFF
    return (rotated >> 8).to(torch.uint8), (rotated & 255).to(torch.uint8)


def _escapes(exponents: Tensor, base: int) -> int:
    return int(((exponents <= base) | (exponents > base + 15)).sum())


WEIGHTS = {
    "every pattern": every_pattern(),
    "every exponent in a row": every_pattern().T,
    "all zeros": torch.tensor([0.0, -0.0]).repeat(3, 100).bfloat16(),
    "constant": torch.full((5, 130), 1.5).bfloat16(),
    **{f"gaussian {n}x{k}": gaussian(n, k) for n, k in SHAPES},
    **{f"hostile {n}x{k}": hostile(n, k) for n, k in SHAPES},
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_bit_comes_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = WEIGHTS[name]
    monkeypatch.setattr(packing, "ELEMENTS_TO_PACK", 1000)
    with poisoned_memory():
        weight = packed(values)
    assert same_bits(float12_decode(weight), values)
    indices = torch.tensor([values.shape[0] - 1, 0, 0])
    assert same_bits(float12_decode(weight, indices), values[indices])
    assert same_bits(_layout(values).dense(), values)


@pytest.mark.parametrize("name", WEIGHTS)
def test_parts_make_the_same_weight(name: str) -> None:
    values = WEIGHTS[name]
    parts = _parts(values)
    assert same_bits(join_parts(*parts), values)
    assert same_bits(Float12Layout.from_parts(*parts).dense(), values)
    weight = pack_parts(*parts, max_share=1.0)
    assert weight is not None
    for part in NAMES:
        got, want = getattr(weight, part), getattr(packed(values), part)
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


def test_bases_leave_the_fewest_escapes() -> None:
    values = torch.cat((gaussian(40, 90), hostile(40, 90)))
    exponents = _parts(values)[0].to(torch.int32)
    weight = packed(values)
    for row, base in zip(exponents, weight.bases.tolist(), strict=True):
        coded = row[row > 0]
        assert _escapes(coded, base) == min(_escapes(coded, b) for b in range(240))


def test_zeros_are_no_escapes() -> None:
    values = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    values[values.abs() < values.abs().median()] *= 0.0
    weight = pack(values)
    assert weight is not None
    assert weight.columns.numel() < 10
    assert same_bits(float12_decode(weight), values)


def test_too_many_escapes_are_not_packed() -> None:
    values = torch.ones(4, 256).bfloat16()
    values.view(-1)[:8] = 1e-30  # 8 of 1024 is the most
    assert pack(values) is not None
    assert pack_parts(*_parts(values)) is not None
    values.view(-1)[8] = 1e-30
    assert pack(values) is None
    assert pack_parts(*_parts(values)) is None


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_cpu_computes_what_dense_does(n: int, k: int, dtype: torch.dtype) -> None:
    values = gaussian(n, k)
    layout, dense = _layout(values), _dense(values)
    bias = activations(1, n, seed=3)[0].to(dtype)
    indices = torch.tensor([[0, n - 1], [n // 2, 0]])
    layout.prepare(dtype)
    dense.prepare(dtype)
    assert layout.resident_bytes == dense.resident_bytes
    for m in (1, 3, 64):
        x = activations(m, k, dtype)
        assert torch.equal(layout.matmul(x, bias), dense.matmul(x, bias))
        assert torch.equal(layout.partials(x, bias), dense.partials(x, bias))
        if n % 2 == 0:
            assert torch.equal(layout.gated(x, bias, "silu"), dense.gated(x, bias, "silu"))
    assert torch.equal(layout.rows(indices, dtype), dense.rows(indices, dtype))
    assert same_bits(layout.dense(), values)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("n", "k"), [*SHAPES, (6, 300)])
def test_the_packed_form_multiplies_exact_weights(n: int, k: int, dtype: torch.dtype) -> None:
    values = gaussian(n, k)
    form = WordsForm(packed(values))
    wide = values.double()
    for m in (1, 3):
        x, bias = activations(2 * m, k, dtype).view(m, 2, k), activations(1, n, seed=3)[0]
        y = form.matmul(x, bias)
        assert (y.dtype, tuple(y.shape)) == (dtype, (m, 2, n))
        rows = x.view(-1, k)
        assert_matmul_close(y.view(-1, n), rows, wide, wide.abs(), bias, TOLERANCES["bf16"])
        assert torch.equal(form.partials(x, bias), y.view(1, -1, n))
        if n % 2 == 0:
            assert torch.equal(form.gated(x, bias, "gelu"), gated(y, "gelu"))
    indices = torch.tensor([[0, n - 1], [n // 2, 0]])
    assert torch.equal(form.rows(indices, torch.float32), values[indices].float())
    assert same_bits(form.dense(), values)
    assert form.dense(torch.float32).dtype == torch.float32


def test_the_packed_form_is_twelve_bits_and_its_escapes() -> None:
    weight = packed(gaussian(64, 256))
    form = WordsForm(weight)
    escapes = weight.columns.numel()
    assert 0 < escapes < 64 * 256 * 0.05
    assert form.resident_bytes == 64 * 256 * 3 // 2 + 64 + 65 * 4 + escapes * 6
    form.prepare(torch.float32)


def test_operands_and_planes_are_checked() -> None:
    values = gaussian(4, 8)
    form = WordsForm(packed(values))
    with pytest.raises(LayoutError, match=r"`x` has shape \[1, 7\], expected \[..., 8\]"):
        form.matmul(activations(1, 7))
    with pytest.raises(LayoutError, match=r"`indices` has dtype torch\.int32"):
        form.rows(torch.zeros(1, dtype=torch.int32), torch.float32)
    with pytest.raises(LayoutError, match="halves the rows of a weight, which has 3"):
        WordsForm(packed(values[:3])).gated(activations(1, 8), None, "silu")
    with pytest.raises(LayoutError, match=r"`float12.values` has dtype torch.float32"):
        Float12Layout.from_planes({"values": values.float()}, (4, 8), BF16, {}, CPU)
    with pytest.raises(LayoutError, match=r"missing: \['values'\], unknown: \['codes'\]"):
        Float12Layout.from_planes({"codes": values}, (4, 8), BF16, {}, CPU)
    exponents, mantissas = _parts(values)
    with pytest.raises(LayoutError, match=r"`mantissas` has shape \[4, 7\], expected \[4, 8\]"):
        pack_parts(exponents, mantissas[:, :7])
    with pytest.raises(LayoutError, match=r"`exponents` has dtype torch.int16"):
        Float12Layout.from_parts(exponents.to(torch.int16), mantissas)
    with pytest.raises(LayoutError, match=r"`values` has dtype torch.float32"):
        pack(values.float())


def test_the_assembly_makes_pairs_of_weights() -> None:
    """Words 3 and 4 of a block: columns 3, 4, 19, 20, … of a row of every code and any byte."""
    triton = pytest.importorskip("tersor.kernels.float12.triton")
    codes = torch.arange(BLOCK_COLUMNS, dtype=torch.uint8)[None] * 7 % 16
    signs = torch.arange(BLOCK_COLUMNS, dtype=torch.uint8)[None] * 73
    signs[codes == 0] &= 128  # a zero; an escape's byte is 0, too
    nibbles = interleaved(codes, 4)[0].tolist()
    low, high = (half.tolist() for half in interleaved(signs, 8)[0].split(BW))
    for half, (assembly, bytes_) in enumerate(((triton.LOW_PAIRS, low), (triton.HIGH_PAIRS, high))):
        words = (nibbles[3], nibbles[4], bytes_[3], bytes_[4])
        inputs = {f"${4 + i}": word & 0xFFFFFFFF for i, word in enumerate(words)}
        registers = ptx.run(assembly.value, inputs)
        for j in range(4):
            for offset in range(2):
                column = BW * (4 * half + j) + 3 + offset
                bits = registers[f"${j}"] >> (16 * offset) & 0xFFFF
                code, byte = int(codes[0, column]), int(signs[0, column])
                exponent = code + 112 if code else 0
                assert bits == (byte >> 7) << 15 | exponent << 7 | byte & 127


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("finish", ["sum", "partials", "silu"])
def test_matmul_passes_opcheck(finish: str, dtype: torch.dtype) -> None:
    weight = packed(gaussian(6, 40))
    planes = [getattr(weight, name) for name in NAMES]
    for bias in (None, torch.ones(6)):
        torch.library.opcheck(
            torch.ops.tersor.float12_matmul.default,
            (activations(3, 40, dtype), *planes, bias, finish),
        )


def test_decode_passes_opcheck() -> None:
    weight = packed(gaussian(6, 40))
    bounds = (weight.offsets[:-1], weight.offsets[1:])
    torch.library.opcheck(
        torch.ops.tersor.float12_decode.default,
        (weight.words, weight.bases, *bounds, weight.columns, weight.values, 40),
    )
