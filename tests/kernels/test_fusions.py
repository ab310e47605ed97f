"""The fused decoder operators on a CPU, against their definitions and as torch's tools see them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fusion_cases import EPS, Tolerance, heads, random
from torch import Tensor

from tersor.kernels.norm import add_rms_norm, rms_norm_rows
from tersor.kernels.norm import reference as norm_reference
from tersor.kernels.rotary import rotate_store
from tersor.kernels.rotary.quantize import quantize_kv
from tersor.kernels.rotary.reference import split_heads

# A bf16 result is rounded up to four times: product, norm, rotation and their sum; half an ulp is
# 2^-8 of a number just above a power of two.
TOLERANCES = {
    torch.float32: Tolerance(rtol=1e-5, atol=1e-5),
    torch.bfloat16: Tolerance(rtol=4 * 2**-8, atol=2**-6),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def _partials(splits: int, *shape: int, dtype: torch.dtype) -> Tensor | None:
    parts = torch.float32 if splits > 1 else dtype
    return random(splits, *shape, seed=3, dtype=parts) if splits else None


@DTYPES
@pytest.mark.parametrize("splits", [0, 1, 3])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (3, 7), (63, 129)])
def test_add_rms_norm(tokens: int, width: int, splits: int, dtype: torch.dtype) -> None:
    residual = random(tokens, width, seed=1, dtype=dtype)
    gain = random(width, seed=2)
    partials = _partials(splits, tokens, width, dtype=dtype)
    rows = torch.tensor([tokens - 1, 0])
    sums = norm_reference.added(residual, partials)
    before = residual.clone()
    chosen = rms_norm_rows(residual, partials, rows, gain, EPS)
    assert torch.equal(residual, before)
    out = add_rms_norm(residual, partials, gain, EPS)
    expected = norm_reference.rms_norm(sums, gain.to(dtype), EPS)
    TOLERANCES[dtype].check(residual, sums)
    TOLERANCES[dtype].check(out, expected)
    TOLERANCES[dtype].check(chosen, out[rows])


@DTYPES
@pytest.mark.parametrize("splits", [0, 1, 3])
def test_norms_pass_opcheck(splits: int, dtype: torch.dtype) -> None:
    residual, gain = random(3, 7, seed=1, dtype=dtype), random(7, seed=2)
    partials = _partials(splits, 3, 7, dtype=dtype)
    ops = torch.ops.tersor
    torch.library.opcheck(ops.add_rms_norm.default, (residual, partials, gain, EPS))
    torch.library.opcheck(
        ops.rms_norm_rows.default, (residual, partials, torch.tensor([2, 2]), gain, EPS)
    )


@DTYPES
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    ("tokens", "num_heads", "kv_heads", "head_dim"), [(1, 1, 1, 2), (3, 6, 2, 12), (5, 3, 1, 16)]
)
def test_rotate_store(
    tokens: int,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    splits: int,
    norm: bool,
    dtype: torch.dtype,
) -> None:
    case = heads(tokens, num_heads, kv_heads, head_dim, splits=splits, norm=norm, dtype=dtype)
    cache = torch.full((4, 2, 2, kv_heads, head_dim), 9.0, dtype=dtype)
    slots = torch.tensor([7, 0, 3, 2, 5])[:tokens]
    q = rotate_store(case, slots, cache)
    assert q.dtype == case.dtype == dtype
    flat, expected = cache.flatten(0, 1), split_heads(case)
    for got, want in ((q, expected.q), (flat[slots, 0], expected.k), (flat[slots, 1], expected.v)):
        TOLERANCES[dtype].check(got.float(), want)
    untouched = [slot for slot in range(8) if slot not in slots.tolist()]
    assert bool((flat[untouched] == 9.0).all())


@DTYPES
@pytest.mark.parametrize("norm", [False, True])
def test_rotate_store_passes_opcheck(norm: bool, dtype: torch.dtype) -> None:
    case = heads(3, 4, 2, 8, norm=norm, dtype=dtype)
    cos, sin = case.rotation
    arguments = (case.qkv, cos, sin, case.q_gain, case.k_gain, EPS, 4, torch.tensor([1, 5, 0]))
    cache = torch.zeros(3, 2, 2, 2, 8, dtype=dtype)
    torch.library.opcheck(torch.ops.tersor.rotate_store.default, (*arguments, cache))
    codes, scales = torch.zeros(3, 2, 2, 2, 8, dtype=torch.int8), torch.zeros(3, 2, 2, 2)
    torch.library.opcheck(torch.ops.tersor.rotate_store.default, (*arguments, codes, scales))


def test_keys_and_values_are_rounded_to_a_narrower_cache() -> None:
    case = heads(2, 2, 1, 4)
    cache = torch.zeros(1, 2, 2, 1, 4, dtype=torch.bfloat16)
    rotate_store(case, torch.tensor([1, 0]), cache)
    assert torch.equal(cache[0, [1, 0], 0], case.split().k.bfloat16())


def test_an_int8_cache_gets_codes_and_scales() -> None:
    case, slots = heads(2, 2, 1, 4), torch.tensor([1, 0])
    cache, scales = torch.zeros(1, 2, 2, 1, 4, dtype=torch.int8), torch.zeros(1, 2, 2, 1)
    rotate_store(case, slots, cache, scales)
    for part, values in enumerate(case.split()[1:]):
        codes, want = quantize_kv(values)
        assert torch.equal(cache[0, slots, part], codes)
        assert torch.equal(scales[0, slots, part], want)


def test_heads_are_split_from_the_sum_of_their_parts() -> None:
    case = heads(3, 4, 2, 8, splits=3)
    whole = replace(case, qkv=case.qkv.sum(0, keepdim=True))
    for got, want in zip(case.split(), whole.split(), strict=True):
        assert torch.equal(got, want)
