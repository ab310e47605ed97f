"""The fused decoder operators' kernels under Triton's interpreter (see matmul_cases.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fusion_cases import EPS, Tolerance, heads, random
from interpreted_memory import bounded_memory
from poison import poisoned_memory

from tersor.kernels.errors import LayoutError
from tersor.kernels.norm import reference as norm_reference
from tersor.kernels.norm import triton as norm
from tersor.kernels.rotary import Heads, Rotation
from tersor.kernels.rotary import triton as rotary
from tersor.kernels.rotary.quantize import quantize_kv
from tersor.kernels.rotary.reference import split_heads

# float32 sums of a few hundred numbers near 1, in another order.
TOLERANCE = Tolerance(rtol=1e-5, atol=1e-5)
# The interpreter cuts a float32 off at bf16 instead of rounding it: an ulp is 2^-7 of a number
# just above a power of two, and a residual that is cut off moves its norm by as much.
COARSE = Tolerance(rtol=2**-6, atol=2**-9)


@pytest.mark.parametrize("splits", [0, 1, 3])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (3, 7), (2, 129), (5, 640), (2, 8200)])
def test_add_rms_norm(tokens: int, width: int, splits: int) -> None:
    residual, gain = random(tokens, width, seed=1), random(width, seed=2)
    partials = random(splits, tokens, width, seed=3) if splits else None
    sums = norm_reference.added(residual, partials)
    rows = torch.tensor([tokens - 1, 0, tokens - 1])
    before = residual.clone()
    operands = [t for t in (residual, gain, partials, rows) if t is not None]
    with poisoned_memory(), bounded_memory(operands):
        chosen = norm.rms_norm_rows(residual, partials, rows, gain, EPS)
        assert torch.equal(residual, before)
        out = norm.add_rms_norm(residual, partials, gain, EPS)
    expected = norm_reference.rms_norm(sums, gain, EPS)
    TOLERANCE.check(residual, sums)
    TOLERANCE.check(out, expected)
    assert torch.equal(chosen, out[rows])


@pytest.mark.parametrize("splits", [0, 1, 3])
def test_add_rms_norm_in_bf16(splits: int) -> None:
    residual = random(3, 130, seed=1, dtype=torch.bfloat16)
    gain = random(130, seed=2, dtype=torch.bfloat16)
    parts = torch.float32 if splits > 1 else torch.bfloat16
    partials = random(splits, 3, 130, seed=3, dtype=parts) if splits else None
    sums = norm_reference.added(residual, partials)
    with poisoned_memory():
        out = norm.add_rms_norm(residual, partials, gain, EPS)
    assert out.dtype == residual.dtype == torch.bfloat16
    COARSE.check(residual, sums)
    COARSE.check(out, norm_reference.rms_norm(sums, gain, EPS))


def test_a_norm_does_not_depend_on_the_batch() -> None:
    partials, gain = random(3, 9, 300, seed=1), random(300, seed=2)
    whole = norm.add_rms_norm(random(9, 300, seed=3), partials, gain, EPS)
    alone = norm.add_rms_norm(random(9, 300, seed=3)[4:5], partials[:, 4:5].contiguous(), gain, EPS)
    assert torch.equal(alone, whole[4:5])


def _store(
    case: Heads, slots: torch.Tensor, cache: torch.Tensor, kv_scales: torch.Tensor | None = None
) -> torch.Tensor:
    cos, sin = case.rotation
    return rotary.rotate_store(
        case.qkv, cos, sin, case.q_gain, case.k_gain, case.eps, case.num_heads, slots, cache,
        kv_scales,
    )  # fmt: skip


@pytest.mark.parametrize("norm_heads", [False, True])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    ("tokens", "num_heads", "kv_heads", "head_dim"), [(1, 1, 1, 2), (3, 6, 2, 12), (5, 3, 1, 16)]
)
def test_rotate_store(
    tokens: int, num_heads: int, kv_heads: int, head_dim: int, splits: int, norm_heads: bool
) -> None:
    case = heads(tokens, num_heads, kv_heads, head_dim, splits=splits, norm=norm_heads)
    cache = torch.full((4, 2, 2, kv_heads, head_dim), 9.0)
    slots = torch.tensor([7, 0, 3, 2, 5])[:tokens]
    with poisoned_memory(), bounded_memory([case.qkv, cache, slots, *_tables(case)]):
        q = _store(case, slots, cache)
    expected = split_heads(case)
    flat = cache.flatten(0, 1)
    TOLERANCE.check(q, expected.q)
    TOLERANCE.check(flat[slots, 0], expected.k)
    TOLERANCE.check(flat[slots, 1], expected.v)
    untouched = [slot for slot in range(8) if slot not in slots.tolist()]
    assert bool((flat[untouched] == 9.0).all())


@pytest.mark.parametrize("splits", [1, 2])
def test_rotate_store_in_bf16(splits: int) -> None:
    case = heads(3, 4, 2, 16, splits=splits, norm=True, dtype=torch.bfloat16)
    cache = torch.zeros(2, 2, 2, 2, 16, dtype=torch.bfloat16)
    slots = torch.tensor([3, 1, 0])
    with poisoned_memory():
        q = _store(case, slots, cache)
    assert q.dtype == torch.bfloat16
    expected = split_heads(case)
    flat = cache.flatten(0, 1)
    for got, want in ((q, expected.q), (flat[slots, 0], expected.k), (flat[slots, 1], expected.v)):
        COARSE.check(got.float(), want)


def test_rotate_store_in_int8() -> None:
    case = heads(4, 4, 2, 12, splits=2, norm=True)
    case.qkv[0, 2, -3] = float("nan")  # in the last value head
    cache = torch.zeros(2, 3, 2, 2, 12, dtype=torch.int8)
    scales, slots = torch.zeros(2, 3, 2, 2), torch.tensor([4, 1, 0, 5])
    with poisoned_memory(), bounded_memory([case.qkv, cache, scales, slots, *_tables(case)]):
        q = _store(case, slots, cache, scales)
    expected = split_heads(case)
    torch.testing.assert_close(q, expected.q, rtol=TOLERANCE.rtol, atol=TOLERANCE.atol)
    for part, values in enumerate((expected.k, expected.v)):
        codes, want = quantize_kv(values)
        got = scales.flatten(0, 1)[slots, part]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0.0, equal_nan=True)
        # A float32 sum in another order may round to the next code. Codes of a NaN do not matter.
        difference = (cache.flatten(0, 1)[slots, part].int() - codes.int())[~want.isnan()]
        assert int(difference.abs().max()) <= 1
        assert bool((difference == 0).float().mean() > 0.9)
    assert bool(scales.flatten(0, 1)[0, 1, 1].isnan())


def test_codes_are_those_of_the_definition() -> None:
    """Of heads that are not rotated: zeros, ties, and numbers at and beyond the ends of float32."""
    tokens, kv_heads, head_dim = 4, 3, 80
    x = random(tokens, 2, kv_heads, head_dim, seed=1) * 0.3
    k, v = x.unbind(1)
    k[0, 0] = 0.0
    k[1, 1, 0], v[1, 1, 5], v[2, 2, 6] = float("nan"), float("inf"), -3e38
    v[3, 2, :3] = torch.tensor([127.0, 0.5, -1.5])  # ties go to the even code
    v[3, 2, 3:] = 0.0
    q = random(tokens, kv_heads * head_dim, seed=2)
    rows = torch.ones(tokens, 1, head_dim)
    case = Heads(
        qkv=torch.cat([q, k.flatten(1), v.flatten(1)], 1)[None],
        num_heads=kv_heads,
        num_kv_heads=kv_heads,
        rotation=Rotation(rows, rows * 0.0),
    )
    cache = torch.full((1, tokens, 2, kv_heads, head_dim), 113, dtype=torch.int8)
    scales = torch.full((1, tokens, 2, kv_heads), float("nan"))
    with np.errstate(invalid="ignore"):  # the NaN and the infinity
        _store(case, torch.arange(tokens), cache, scales)
    codes, wanted = quantize_kv(x)
    finite = wanted.isfinite()
    assert int((~finite).sum()) == 2
    assert torch.equal(cache[0][finite], codes[finite])
    torch.testing.assert_close(scales[0], wanted, rtol=1e-6, atol=0, equal_nan=True)


def _tables(case: Heads) -> list[torch.Tensor]:
    """What may be read besides qkv; cosines and sines are views of rows that hold both."""
    base = case.rotation.cos._base
    return [t for t in (base, case.q_gain, case.k_gain) if t is not None]


def test_launchers_name_the_argument_that_does_not_fit() -> None:
    residual, gain = torch.zeros(2, 8), torch.ones(8)
    with pytest.raises(LayoutError, match=r"`partials` has shape \[3, 2, 7\]"):
        norm.add_rms_norm(residual, torch.zeros(3, 2, 7), gain, EPS)
    with pytest.raises(LayoutError, match=r"`gain` has shape \[7\], expected \[8\]"):
        norm.add_rms_norm(residual, None, gain[:7], EPS)
    with pytest.raises(LayoutError, match=r"`rows` has dtype torch\.float32"):
        norm.rms_norm_rows(residual, None, torch.zeros(1), gain, EPS)
    case, slots = heads(2, 2, 1, 4), torch.tensor([0, 1])
    with pytest.raises(LayoutError, match=r"`qkv` has shape \[1, 2, 16\], expected \[any, any, 24"):
        _store(case, slots, torch.zeros(1, 2, 2, 2, 4))
    with pytest.raises(LayoutError, match=r"`cache` has shape \[2, 2, 1, 4\]"):
        _store(case, slots, torch.zeros(2, 2, 1, 4))
    with pytest.raises(LayoutError, match=r"`slots` has dtype torch\.int32"):
        _store(case, slots.int(), torch.zeros(1, 2, 2, 1, 4))
    with pytest.raises(
        LayoutError, match=r"`cache` has dtype torch\.float32, expected torch\.int8"
    ):
        _store(case, slots, torch.zeros(1, 2, 2, 1, 4), torch.zeros(1, 2, 2, 1))
    with pytest.raises(LayoutError, match="head_dim is 3, expected an even number"):
        _store(case, slots, torch.zeros(1, 2, 2, 1, 3))
