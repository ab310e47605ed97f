"""Decoding that makes its own heads, under Triton's interpreter (see matmul_cases.py).

Bit for bit what a launch of `rotate_store` and one of attention give: a sequence's result must not
depend on whether its pass holds longer spans too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import AttentionCase
from fusion_cases import heads
from heads_pass import HeadsPass
from interpreted_memory import bounded_memory
from poison import poisoned_memory

from tersor.kernels.errors import LayoutError
from tersor.kernels.rotary import Heads

SIZES = [(1, 1), (1, 128), (1, 270)]
SHAPES: list[dict[str, Any]] = [
    {"kv_heads": 2, "share": 1, "head_dim": 64},
    {"kv_heads": 1, "share": 3, "head_dim": 80, "page_tokens": 5},
    {"kv_heads": 1, "share": 4, "head_dim": 128},
    {"kv_heads": 1, "share": 16, "head_dim": 6, "page_tokens": 1},
]
FEATURES: list[dict[str, Any]] = [
    {},
    {"window": 1},
    {"window": 130, "soft_cap": 2.0},
    {"soft_cap": 0.5, "sinks": True},
    {"window": 37, "sinks": True, "int8": True},
    {"int8": True},
]


def _check(case: AttentionCase, *, splits: int, norm: bool) -> None:
    two, one = (HeadsPass(case, splits=splits, norm=norm) for _ in range(2))
    with poisoned_memory():
        expected = two.two_launches()
        got = one.one_launch()
    assert bool(expected.isfinite().all())
    assert torch.equal(got, expected)
    for ours, theirs in zip(one.stored(), two.stored(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: dict[str, Any]) -> None:
    _check(AttentionCase.random(SIZES, **shape), splits=3, norm=shape["share"] != 1)


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_features(features: dict[str, Any]) -> None:
    case = AttentionCase.random(SIZES, kv_heads=1, share=3, head_dim=40, page_tokens=5, **features)
    _check(case, splits=2, norm=True)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("cache", [torch.bfloat16, torch.float32, None])
def test_activations_in_bf16(cache: torch.dtype | None, splits: int) -> None:
    case = AttentionCase.random(
        SIZES, dtype=torch.bfloat16, cache_dtype=cache, int8=cache is None, kv_heads=1, head_dim=32
    )
    _check(case, splits=splits, norm=True)


def test_heads_that_are_not_finite() -> None:
    """They get NaN scales, and are stored where they belong."""
    case = AttentionCase.random(SIZES, kv_heads=2, share=2, head_dim=16, int8=True)
    two, one = (HeadsPass(case, splits=2, norm=False) for _ in range(2))
    for each in (two, one):
        each.heads.qkv[1, 1, -3] = float("inf")  # in the last value head
    with np.errstate(invalid="ignore"):
        expected, got = two.two_launches(), one.one_launch()
    assert bool(got[1, 2:].isnan().all())
    assert int(got.isnan().sum()) == 2 * 16
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    for ours, theirs in zip(one.stored(), two.stored(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_kernel_stays_within_its_tensors() -> None:
    case = AttentionCase.random(SIZES, kv_heads=1, share=3, head_dim=40, page_tokens=5, int8=True)
    one = HeadsPass(case, splits=3, norm=True)
    assert one.plan._kernels is not None
    tables = one.plan._kernels._tables
    counters = torch.zeros(len(SIZES), 1, dtype=torch.int32)
    rows = one.heads.rotation.cos._base
    operands = [one.heads.qkv, one.heads.q_gain, one.heads.k_gain, rows, one.cache, one.kv_scales]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros", lambda *_, **__: counters)
        allowed = [tensor for tensor in operands if tensor is not None]
        with bounded_memory([*allowed, tables.decode, tables.pages, counters]):
            one.one_launch()
    assert not counters.any()


@pytest.mark.parametrize(
    ("sizes", "share"), [([(1, 5), (3, 20)], 2), ([(1, 5), (1, 20)], 64)], ids=["mixed", "wide"]
)
def test_other_passes_take_two_launches(sizes: list[tuple[int, int]], share: int) -> None:
    case = AttentionCase.random(sizes, kv_heads=1, share=share, head_dim=32)
    two, one = (HeadsPass(case, splits=2, norm=True) for _ in range(2))
    # On a CPU torch rotates and stores for the plan: the same numbers, rounded elsewhere.
    torch.testing.assert_close(one.one_launch(), two.two_launches(), rtol=1e-5, atol=1e-5)


def test_heads_that_do_not_fit() -> None:
    case = AttentionCase.random([(1, 5), (1, 20)], kv_heads=2, share=2, head_dim=16)
    one = HeadsPass(case, splits=1, norm=False)
    wrong: list[tuple[Heads, str]] = [
        (heads(3, 4, 2, 16), "4 heads and 2 kv heads of 3 tokens do not fit"),
        (heads(2, 4, 4, 16), "4 heads and 4 kv heads of 2 tokens do not fit"),
        (heads(2, 5, 2, 16), "5 heads and 2 kv heads of 2 tokens do not fit"),
        (heads(2, 4, 2, 8), r"`qkv` has shape \[1, 2, 64\], expected \[any, any, 128\]"),
    ]
    for each, message in wrong:
        one.heads = each
        with pytest.raises(LayoutError, match=message):
            one.one_launch()
