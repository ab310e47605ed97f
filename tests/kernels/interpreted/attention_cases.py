"""The paged attention kernels under Triton's interpreter, on the CPU.

Run by ../test_triton_interpreted.py. Unused slots of all caches hold NaN (see
tests/support/attention_cases.py), and so does memory that nobody wrote.
"""

from __future__ import annotations

from typing import Any

import ptx
import pytest
import torch
from attention_cases import AttentionCase
from interpreted_memory import bounded_memory
from poison import poisoned_memory

from tersor.kernels.attention import AttentionPlan, launch
from tersor.kernels.attention.config import MIN_SEGMENT_TOKENS, most_segments, segment_bucket
from tersor.kernels.attention.triton import CODE_PAIRS_ASM
from tersor.kernels.errors import LayoutError

HOST = torch.device("cpu")
# Absolute, of results around 1: float32 sums of up to 300 products of two softmaxes, in another
# order, and exp2 for exp.
TOLERANCE = 5e-6
DECODE = [(1, 1), (1, 5), (1, 128), (1, 129), (1, 300)]
PREFILL = [(7, 7), (3, 40), (21, 100)]
HEADS: list[dict[str, Any]] = [
    {"kv_heads": 2, "share": 1, "head_dim": 64},
    {"kv_heads": 1, "share": 3, "head_dim": 80, "page_tokens": 5},
    {"kv_heads": 2, "share": 4, "head_dim": 128},
    {"kv_heads": 1, "share": 8, "head_dim": 96, "page_tokens": 1},
    {"kv_heads": 2, "share": 20, "head_dim": 6, "page_tokens": 7},
]
FEATURES: list[dict[str, Any]] = [
    {},
    {"window": 1},
    {"window": 100, "soft_cap": 2.0},
    {"soft_cap": 0.5, "sinks": True},
    {"window": 37, "sinks": True, "int8": True},
    {"int8": True},
]


def _check(case: AttentionCase) -> None:
    expected = case.expected()
    with poisoned_memory():
        got = case.attend(kernels=True)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads(heads: dict[str, Any]) -> None:
    _check(AttentionCase.random([*DECODE[1::2], *PREFILL], **heads))


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_features(features: dict[str, Any]) -> None:
    _check(AttentionCase.random([DECODE[0], *PREFILL, *DECODE[2:]], kv_heads=1, **features))


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_features_with_ragged_heads(features: dict[str, Any]) -> None:
    shape: dict[str, Any] = {"kv_heads": 1, "share": 3, "head_dim": 40, "page_tokens": 5}
    _check(AttentionCase.random([(2, 70), (1, 260)], **shape, **features))


def test_codes_of_small_heads() -> None:
    """Two halves of eight columns, fewer than tensor cores multiply."""
    _check(AttentionCase.random([(1, 20), (3, 9)], head_dim=16, int8=True))


def test_assembly_widens_every_code() -> None:
    """The lines that the interpreter cannot run, on every pair of codes that share a word."""
    assembly = CODE_PAIRS_ASM.value
    for code in range(-128, 128):
        other = -1 - code
        words = [(code & 255) | (other & 255) << 8, (other & 255) | (code & 255) << 8]
        registers = ptx.run(assembly, {"$2": words[0] | words[1] << 16})
        for register, expected in (("$0", [code, other]), ("$1", [other, code])):
            halves = torch.tensor([registers[register]]).view(torch.bfloat16)[:2]
            assert halves.tolist() == expected


@pytest.mark.parametrize("cache", [torch.bfloat16, torch.float32])
def test_cache_and_activations_of_different_dtypes(cache: torch.dtype) -> None:
    case = AttentionCase.random([(1, 40), (4, 30)], dtype=torch.bfloat16, cache_dtype=cache)
    got = case.attend(kernels=True)
    assert got.dtype == torch.bfloat16
    # Half an ulp of bf16 below 4, and as much again: the interpreter truncates where it stores.
    torch.testing.assert_close(got.float(), case.expected().float(), atol=2**-6, rtol=0)


@pytest.mark.parametrize("window", [None, 150])
def test_a_sequence_does_not_depend_on_its_neighbours(window: int | None) -> None:
    """Bit for bit: alone, among others, and in another order."""
    case = AttentionCase.random([(1, 130), (5, 20), (1, 260), (9, 30)], kv_heads=1, window=window)
    counts = [span.queries for span in case.spans]
    together = case.attend(kernels=True).split(counts)
    order = [3, 2, 0, 1]
    shuffled = case.attend(order, kernels=True).split([counts[index] for index in order])
    for place, index in enumerate(order):
        assert torch.equal(shuffled[place], together[index])
        assert torch.equal(case.attend([index], kernels=True), together[index])


@pytest.mark.parametrize("int8", [False, True])
def test_layers_share_the_memory_of_a_plan(int8: bool) -> None:
    """The last program of a sequence leaves its counter as it found it."""
    case = AttentionCase.random([(1, 200), (1, 190)], kv_heads=1, int8=int8)
    plan = AttentionPlan(case.spans, page_tokens=16, device=HOST, kernels=True)
    first = plan.attend(case.q, case.cache, **case.options)
    other = case.options | {"scale": 0.01}
    plan.attend(case.q, case.cache, **other)
    assert torch.equal(plan.attend(case.q, case.cache, **case.options), first)


def test_long_contexts_have_longer_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MAX_SEGMENTS", 2)  # a power of two, as the kernel needs
    _check(AttentionCase.random([(1, 300), (1, 700), (1, 256)], kv_heads=1, window=650))


def test_kernels_stay_within_their_tensors() -> None:
    case = AttentionCase.random([(1, 140), (3, 40), (1, 17)], kv_heads=1, head_dim=40)
    plan = AttentionPlan(case.spans, page_tokens=16, device=HOST, kernels=True)
    assert plan._kernels is not None
    assert case.q._base is not None
    tables = plan._kernels._tables
    counters = torch.zeros(2, 1, dtype=torch.int32)
    allowed = [case.q._base, case.cache, tables.decode, tables.prefill]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros", lambda *_, **__: counters)
        with bounded_memory([*allowed, tables.pages, counters]):
            plan.attend(case.q, case.cache, **case.options)


def test_segments_are_a_sequences_own() -> None:
    assert [most_segments(n) for n in (1, MIN_SEGMENT_TOKENS, 129, 10**6)] == [1, 1, 2, 64]
    assert [segment_bucket(n) for n in (1, 2, 3, 33, 64)] == [1, 2, 4, 64, 64]


def test_heads_that_no_tile_takes() -> None:
    case = AttentionCase.random([(1, 3)], kv_heads=1, share=1, head_dim=7, int8=True)
    with pytest.raises(LayoutError, match="heads of 7, expected an even size for an int8 cache"):
        case.attend(kernels=True)
    case = AttentionCase.random([(1, 3)], kv_heads=1, share=65, head_dim=8)
    with pytest.raises(LayoutError, match="65 query heads of 8 per kv head, expected at most 64"):
        case.attend(kernels=True)
