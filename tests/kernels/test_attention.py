"""Paged attention against its definition, and its independence from who shares the pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import AttentionCase
from torch import Tensor

from tersor.kernels.attention import (
    AttentionPlan,
    Span,
    dequantize_kv,
    paged_attention_reference,
    quantize_kv,
)
from tersor.kernels.attention.tables import Tables
from tersor.kernels.errors import LayoutError

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}  # absolute, of values around 1
PAGE_TOKENS = 4
PAGES = 64
SCALE = 0.3


@dataclass(frozen=True, kw_only=True)
class Heads:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16


def _cache(heads: Heads, dtype: torch.dtype = torch.float32) -> Tensor:
    """A cache full of finite noise."""
    generator = torch.Generator().manual_seed(1)
    shape = (PAGES, PAGE_TOKENS, 2, heads.kv_heads, heads.head_dim)
    return torch.randn(shape, generator=generator).to(dtype)


def _span(first_page: int, queries: int, context: int, *, scattered: bool = False) -> Span:
    count = -(-context // PAGE_TOKENS)
    if not scattered:
        return Span(
            pages=range(first_page, first_page + count),
            queries=queries,
            context=context,
            contiguous=True,
        )
    generator = torch.Generator().manual_seed(first_page)
    pages = (torch.randperm(16, generator=generator)[:count] + first_page).tolist()
    return Span(pages=pages, queries=queries, context=context)


def _plan(spans: list[Span]) -> AttentionPlan:
    return AttentionPlan(spans, page_tokens=PAGE_TOKENS, device=CPU)


def _queries(spans: list[Span], heads: Heads, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    count = sum(span.queries for span in spans)
    return torch.randn(count, heads.heads, heads.head_dim, generator=generator).to(dtype)


SPANS = {
    "decode": [_span(0, 1, 1), _span(4, 1, 4), _span(8, 1, 5), _span(12, 1, 31)],
    "decode scattered": [_span(0, 1, 29, scattered=True), _span(16, 1, 64, scattered=True)],
    "first chunk": [_span(0, 9, 9)],
    "later chunk": [_span(0, 7, 22), _span(16, 3, 23, scattered=True)],
    "mixed": [_span(0, 1, 17), _span(8, 5, 5), _span(16, 1, 3, scattered=True), _span(32, 2, 40)],
}


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("name", SPANS)
def test_matches_the_reference(name: str, window: int | None) -> None:
    spans, heads = SPANS[name], Heads()
    q, cache = _queries(spans, heads), _cache(heads)
    expected = paged_attention_reference(q, cache, spans, scale=SCALE, window=window)
    got = _plan(spans).attend(q, cache, scale=SCALE, window=window)
    torch.testing.assert_close(got, expected, atol=TOLERANCE[q.dtype], rtol=0)


@pytest.mark.parametrize(
    "heads",
    [
        Heads(heads=1, kv_heads=1, head_dim=2),
        Heads(heads=3, kv_heads=1, head_dim=6),
        Heads(heads=5, kv_heads=5, head_dim=20),
        Heads(heads=12, kv_heads=4, head_dim=64),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matches_the_reference_for_other_heads(heads: Heads, dtype: torch.dtype) -> None:
    spans = SPANS["mixed"]
    q, cache = _queries(spans, heads, dtype), _cache(heads, dtype)
    expected = paged_attention_reference(q, cache, spans, scale=SCALE, window=None)
    got = _plan(spans).attend(q, cache, scale=SCALE, window=None)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected.float(), atol=TOLERANCE[dtype], rtol=0)


def test_reference_is_plain_attention() -> None:
    """One full sequence against a loop over its tokens."""
    heads, window = Heads(heads=2, kv_heads=1, head_dim=4), 3
    spans = [_span(3, 5, 5)]
    q, cache = _queries(spans, heads), _cache(heads)
    kv = cache[3:5].flatten(0, 1)[:5, :, 0]  # [5, 2, head_dim]
    got = paged_attention_reference(q, cache, spans, scale=SCALE, window=window)
    for token in range(5):
        seen = slice(max(0, token - window + 1), token + 1)
        for head in range(2):
            scores = (kv[seen, 0] * q[token, head]).sum(-1) * SCALE
            weights = scores.exp() / scores.exp().sum()
            expected = (weights[:, None] * kv[seen, 1]).sum(0)
            torch.testing.assert_close(got[token, head], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 6])
def test_a_sequence_does_not_depend_on_its_neighbours(
    window: int | None, dtype: torch.dtype
) -> None:
    """Bit for bit: alone, among others, in another order, and with its pages elsewhere."""
    heads = Heads(heads=6, kv_heads=2, head_dim=16)
    spans = [_span(4 * i, 1, 2 + 3 * i % 13) for i in range(8)] + [_span(40, 6, 20)]
    q, cache = _queries(spans, heads, dtype), _cache(heads, dtype)
    starts = [sum(span.queries for span in spans[:i]) for i in range(len(spans))]

    def attend(order: list[int]) -> dict[int, Tensor]:
        chosen = [spans[i] for i in order]
        rows = torch.cat([q[starts[i] : starts[i] + spans[i].queries] for i in order])
        out = _plan(chosen).attend(rows, cache, scale=SCALE, window=window)
        return dict(zip(order, out.split([span.queries for span in chosen]), strict=True))

    together = attend(list(range(len(spans))))
    backwards = attend(list(reversed(range(len(spans)))))
    for index in range(len(spans)):
        alone = attend([index])[index]
        assert torch.equal(alone, together[index])
        assert torch.equal(alone, backwards[index])


def test_pages_may_lie_anywhere() -> None:
    """Bit for bit the same in place and gathered from scattered pages."""
    heads = Heads()
    cache = _cache(heads)
    near = _span(0, 1, 30)
    far = Span(pages=[50, 41, 45, 60, 40, 55, 48, 63], queries=1, context=30)
    cache[list(far.pages)] = cache[:8].clone()
    q = _queries([near], heads)
    results = [
        _plan([span]).attend(q, cache, scale=SCALE, window=window)
        for span in (near, far)
        for window in (None,)
    ]
    assert torch.equal(results[0], results[1])


def test_what_lies_behind_the_context_is_not_read() -> None:
    heads, spans = Heads(), [_span(0, 1, 5), _span(8, 3, 9)]
    q, cache = _queries(spans, heads), _cache(heads)
    clean = _plan(spans).attend(q, cache, scale=SCALE, window=None)
    cache[1, 1:] = 1e30  # behind the first sequence's tokens
    cache[10, 1:] = 1e30  # and the second's
    cache[3:8] = float("nan")  # pages of nobody
    dirty = _plan(spans).attend(q, cache, scale=SCALE, window=None)
    assert torch.equal(clean, dirty)


def test_operands_that_do_not_fit() -> None:
    heads, spans = Heads(), [_span(0, 1, 5)]
    q, cache = _queries(spans, heads), _cache(heads)
    plan = _plan(spans)
    with pytest.raises(LayoutError, match=r"\[2, 4, 16\], expected .* \[1, num_heads"):
        plan.attend(q.expand(2, 4, 16), cache, scale=SCALE, window=None)
    with pytest.raises(LayoutError, match=r"cache is .* expected"):
        plan.attend(q, cache[:, :2], scale=SCALE, window=None)
    with pytest.raises(LayoutError, match=r"q is torch\.float16 .* expected float32 or bfloat16"):
        plan.attend(q.half(), cache, scale=SCALE, window=None)
    with pytest.raises(LayoutError, match=r"cache is torch\.float16 .* expected float32"):
        plan.attend(q, cache.half(), scale=SCALE, window=None)
    with pytest.raises(LayoutError, match="an int8 cache, and no other, has kv_scales"):
        plan.attend(q, cache.to(torch.int8), scale=SCALE, window=None)
    with pytest.raises(
        LayoutError, match=r"`kv_scales` has shape \[64\], expected \[64, 4, 2, 2\]"
    ):
        plan.attend(q, cache.to(torch.int8), scale=SCALE, window=None, kv_scales=torch.ones(PAGES))
    for window, cap, sinks, problem in (
        (0, None, None, "window is 0, expected at least 1 token"),
        (None, 0.0, None, r"soft_cap is 0\.0, expected a positive finite number"),
        (None, float("nan"), None, "soft_cap is nan"),
        (None, None, torch.zeros(3), r"`sinks` has shape \[3\], expected \[4\]"),
    ):
        with pytest.raises(LayoutError, match=problem):
            plan.attend(q, cache, scale=SCALE, window=window, soft_cap=cap, sinks=sinks)
    with pytest.raises(LayoutError, match="does not fit cache"):
        plan.attend(q[:, :3], cache, scale=SCALE, window=None)
    with pytest.raises(LayoutError, match="5 tokens of context in 1 pages of 4 tokens"):
        _plan([Span(pages=[0], queries=1, context=5)])
    with pytest.raises(LayoutError, match="0 queries"):
        _plan([Span(pages=[0], queries=0, context=1)])


def test_reference_caps_scores_and_sinks_take_their_share() -> None:
    """One token over three keys, by hand."""
    heads = Heads(heads=1, kv_heads=1, head_dim=2)
    q, cache = _queries([_span(0, 1, 3)], heads), _cache(heads)
    keys, values = cache[0, :3, :, 0].unbind(1)  # [3, 2]
    scores = 1.5 * torch.tanh(SCALE * keys @ q[0, 0] / 1.5)
    sink = torch.tensor([0.7])
    weights = torch.cat([scores, sink]).exp()
    expected = (weights[:3, None] * values).sum(0) / weights.sum()
    got = paged_attention_reference(
        q, cache, [_span(0, 1, 3)], scale=SCALE, window=None, soft_cap=1.5, sinks=sink
    )
    torch.testing.assert_close(got[0, 0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "features",
    [
        {"soft_cap": 2.0},
        {"sinks": True},
        {"soft_cap": 0.7, "sinks": True, "window": 9},
        {"int8": True},
        {"int8": True, "sinks": True, "window": 30},
        {"int8": True, "window": 11},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_features_match_the_reference(features: dict[str, Any], dtype: torch.dtype) -> None:
    case = AttentionCase.random([(1, 1), (5, 5), (1, 40), (7, 30)], dtype=dtype, **features)
    got = case.attend()
    assert got.dtype == dtype
    expected = case.expected().float()
    torch.testing.assert_close(got.float(), expected, atol=TOLERANCE[dtype], rtol=0)


def test_cache_may_be_narrower_than_the_activations() -> None:
    case = AttentionCase.random([(1, 20), (4, 30)], cache_dtype=torch.bfloat16)
    got = case.attend()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, case.expected(), atol=TOLERANCE[torch.float32], rtol=0)


def test_quantized_heads_that_are_zero_or_not_finite() -> None:
    x = torch.ones(4, 8)
    x[0] = 0.0
    x[1, 3], x[2, 4] = float("nan"), float("-inf")
    x[3, 0] = 3e38
    codes, scales = quantize_kv(x)
    read = dequantize_kv(codes, scales, torch.float32)
    assert torch.equal(read[0], x[0])
    assert read[1].isnan().all()
    assert read[2].isnan().all()
    torch.testing.assert_close(read[3, 0], x[3, 0], rtol=1e-6, atol=0)


def test_tables_describe_the_pass_and_are_aligned() -> None:
    spans = [_span(3, 1, 6), _span(8, 5, 9), _span(20, 1, 300), _span(40, 3, 3)]
    tables = Tables.build(spans, PAGE_TOKENS, CPU)
    assert tables.slots.tolist() == [
        3 * 4 + 5,
        *range(8 * 4 + 4, 8 * 4 + 9),
        20 * 4 + 299,
        *range(160, 163),
    ]
    assert tables.pages.tolist() == [page for span in spans for page in span.pages]
    # First row, queries, context, pages before, and partial results or query tokens before.
    assert tables.decode[:, :5].tolist() == [[0, 1, 6, 0, 0], [6, 1, 300, 5, 1]]
    assert tables.prefill[:, :5].tolist() == [[1, 5, 9, 2, 0], [7, 3, 3, 80, 5]]
    assert (tables.partials, tables.segments, tables.prefill_tokens) == (4, 4, 8)
    for count in (1, 2):
        tables = Tables.build(spans[:count], PAGE_TOKENS, CPU)
        parts = (tables.decode, tables.prefill, tables.pages)
        assert [(part.data_ptr() - tables.slots.data_ptr()) % 16 for part in parts] == [0, 0, 0]


def test_codes_are_products_with_a_rounded_quotient() -> None:
    """As the kernels divide. Of bf16, products fall so near to ties that a reciprocal's shows."""
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    quotient = np.float32(127.0) / x.abs().amax(-1, keepdim=True).numpy()
    expected = np.rint(x.numpy() * quotient).astype(np.int8)
    assert np.array_equal(quantize_kv(x)[0].numpy(), expected)
