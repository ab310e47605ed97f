"""The paged attention kernels on a CUDA device, against the definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import AttentionCase
from heads_pass import HeadsPass
from poison import poisoned_memory

from tersor.kernels.attention import AttentionPlan, launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
# Absolute, of results around 1 and below. bf16: weights and results are rounded to eight bits.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
SIZES = [(1, 1), (1, 128), (33, 33), (1, 129), (5, 700), (1, 3000), (200, 450), (1, 17)]
HEADS: list[dict[str, Any]] = [
    {"kv_heads": 8, "share": 4, "head_dim": 128},
    {"kv_heads": 2, "share": 1, "head_dim": 64},
    {"kv_heads": 3, "share": 3, "head_dim": 80, "page_tokens": 5},
    {"kv_heads": 1, "share": 8, "head_dim": 96},
    {"kv_heads": 2, "share": 7, "head_dim": 256},
    {"kv_heads": 1, "share": 48, "head_dim": 16, "page_tokens": 1},
]
FEATURES: list[dict[str, Any]] = [
    {},
    {"window": 1},
    {"window": 300, "soft_cap": 2.0},
    {"soft_cap": 0.5, "sinks": True},
    {"window": 37, "sinks": True, "int8": True},
    {"int8": True, "soft_cap": 3.0},
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("features", FEATURES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_matches_the_reference(
    heads: dict[str, Any], features: dict[str, Any], dtype: torch.dtype
) -> None:
    case = AttentionCase.random(SIZES, dtype=dtype, device="cuda:0", **heads, **features)
    with poisoned_memory():
        got = case.attend()
    assert got.dtype == dtype
    expected = case.expected().float()
    torch.testing.assert_close(got.float(), expected, atol=TOLERANCES[dtype], rtol=0)


@pytest.mark.parametrize("window", [None, 200])
def test_a_sequence_does_not_depend_on_its_neighbours(window: int | None) -> None:
    case = AttentionCase.random(
        SIZES, dtype=torch.bfloat16, window=window, device="cuda:0", head_dim=128
    )
    counts = [span.queries for span in case.spans]
    together = case.attend().split(counts)
    order = [4, 2, 5, 0, 7, 1, 6, 3]
    shuffled = case.attend(order).split([counts[index] for index in order])
    for place, index in enumerate(order):
        assert torch.equal(shuffled[place], together[index])
        assert torch.equal(case.attend([index]), together[index])


def test_the_last_program_to_arrive_changes_nothing() -> None:
    """Many long sequences, many times: the order in which segments end differs every time."""
    case = AttentionCase.random(
        [(1, 2000 + 37 * index) for index in range(48)], dtype=torch.bfloat16, device="cuda:0"
    )
    plan = AttentionPlan(case.spans, page_tokens=case.page_tokens, device=GPU)
    first = plan.attend(case.q, case.cache, **case.options)
    torch.testing.assert_close(first.float(), case.expected().float(), atol=2e-2, rtol=0)
    for _ in range(200):
        assert torch.equal(plan.attend(case.q, case.cache, **case.options), first)


def test_the_portable_kernels_make_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = AttentionCase.random(
        SIZES, dtype=torch.bfloat16, int8=True, head_dim=128, device="cuda:0"
    )
    with_assembly = case.attend()
    monkeypatch.setattr(launch, "has_inline_asm", lambda _: False)
    assert torch.equal(case.attend(), with_assembly)


def test_passes_are_captured_by_a_cuda_graph() -> None:
    case = AttentionCase.random(
        [(1, 900), (1, 3), (1, 140)], dtype=torch.bfloat16, int8=True, device="cuda:0"
    )
    plan = AttentionPlan(case.spans, page_tokens=case.page_tokens, device=GPU)
    expected = plan.attend(case.q, case.cache, **case.options)  # compiles, allocates partials
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = [plan.attend(case.q, case.cache, **case.options) for _ in range(3)]
    for _ in range(2):
        graph.replay()
        for each in got:
            assert torch.equal(each, expected)


DECODING = [(1, 1), (1, 128), (1, 129), (1, 3000), (1, 17)]


@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("features", FEATURES, ids=str)
@pytest.mark.parametrize("heads", HEADS[:-1], ids=str)
def test_decoding_makes_the_heads_that_a_launch_of_its_own_makes(
    heads: dict[str, Any], features: dict[str, Any], splits: int
) -> None:
    case = AttentionCase.random(
        DECODING, dtype=torch.bfloat16, device="cuda:0", **heads, **features
    )
    for norm in (False, True):
        two, one = (HeadsPass(case, splits=splits, norm=norm) for _ in range(2))
        with poisoned_memory():
            expected, got = two.two_launches(), one.one_launch()
        assert bool(expected.isfinite().all())
        assert torch.equal(got, expected)
        for ours, theirs in zip(one.stored(), two.stored(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("int8", [False, True])
def test_a_program_reads_what_it_has_just_stored(int8: bool) -> None:
    """Many sequences, many times, over the NaN that their last slots hold."""
    case = AttentionCase.random(
        [(1, 1 + 37 * index) for index in range(64)],
        dtype=torch.bfloat16, int8=int8, head_dim=128, device="cuda:0",
    )  # fmt: skip
    expected = HeadsPass(case, splits=4, norm=True).two_launches()
    for _ in range(100):
        assert torch.equal(HeadsPass(case, splits=4, norm=True).one_launch(), expected)


def test_decoding_one_token_of_one_sequence() -> None:
    """Sizes of one, which triton makes constants."""
    case = AttentionCase.random([(1, 1)], kv_heads=1, share=1, window=1, device="cuda:0")
    two, one = (HeadsPass(case, splits=1, norm=False) for _ in range(2))
    assert torch.equal(one.one_launch(), two.two_launches())


def test_a_cache_may_be_wider_or_narrower_than_the_activations() -> None:
    for dtype, cache_dtype in (
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ):
        case = AttentionCase.random(
            SIZES, dtype=dtype, cache_dtype=cache_dtype, device="cuda:0", head_dim=128
        )
        got = case.attend()
        torch.testing.assert_close(
            got.float(), case.expected().float(), atol=TOLERANCES[torch.bfloat16], rtol=0
        )
        case = replace(case, options=case.options | {"window": 64})
        torch.testing.assert_close(
            case.attend().float(), case.expected().float(), atol=2e-2, rtol=0
        )
