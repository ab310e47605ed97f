"""The sampler's kernel under Triton's interpreter (see matmul_cases.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interpreted_memory import bounded_memory
from launches import interpreted_launches
from poison import poisoned_memory
from sampling_cases import Rows, assert_tokens, random_rows

from tersor.kernels.errors import LayoutError
from tersor.kernels.sampling import triton as sampling


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that rows are several blocks long; a drawn row costs 0.2 s whatever its length."""
    monkeypatch.setattr(sampling, "ROW_BLOCK", 128)
    monkeypatch.setattr(sampling, "BUCKET_BLOCK", 64)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("vocab", "count"), [(1, 2), (7, 6), (300, 6)])
def test_tokens(vocab: int, count: int, ties: bool) -> None:
    rows = random_rows(vocab, count, seed=vocab, ties=ties)
    with poisoned_memory(), bounded_memory(rows.operands):
        tokens = sampling.sample_rows(*rows.operands)
    assert tokens.dtype == torch.int64
    assert_tokens(tokens, rows)


def _rows(logits: torch.Tensor, **settings: float) -> Rows:
    count = logits.shape[0]
    values = {"temperature": 1.0, "top_k": 0.0, "top_p": 1.0, "min_p": 0.0, **settings}
    operands = {name: torch.full((count,), value) for name, value in values.items()}
    operands["top_k"] = operands["top_k"].int()
    return Rows(logits=logits, uniform=torch.arange(count) / count, **operands)


def test_exactly_k_are_left_of_ties_and_they_are_the_lowest() -> None:
    logits = torch.zeros(1, 200)
    logits[0, 100:] = 1.0
    rows = _rows(logits.repeat(3, 1), top_k=3)
    assert sampling.sample_rows(*rows.operands).tolist() == [100, 101, 102]
    rows = _rows(logits.repeat(2, 1), top_k=8, top_p=0.25)
    assert sampling.sample_rows(*rows.operands).tolist() == [100, 101]


def test_greedy_takes_the_lowest_of_the_best() -> None:
    logits = torch.zeros(2, 500)
    logits[0, [499, 410, 77]] = 3.0
    assert sampling.sample_rows(*_rows(logits, temperature=0.0).operands).tolist() == [77, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_finite_maximum_have_no_token(temperature: float) -> None:
    logits = torch.randn(5, 70)
    logits[1, 66] = float("nan")
    logits[2] = float("-inf")
    logits[3, 4] = float("inf")
    tokens = sampling.sample_rows(*_rows(logits, temperature=temperature, top_k=4).operands)
    assert (tokens >= 0).tolist() == [True, False, False, False, True]
    assert tokens[1:4].tolist() == [-1] * 3


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.full((2, 50), float("-inf"))
    logits[:, [3, 30]] = 0.0
    for settings in ({}, {"top_p": 0.999999}, {"top_k": 40, "top_p": 0.9}):
        tokens = sampling.sample_rows(*_rows(logits, **settings).operands)
        assert tokens.tolist() == [3, 30]


def test_sampling_is_one_launch_and_names_what_does_not_fit() -> None:
    rows = random_rows(9, 2, seed=3)
    with interpreted_launches() as names:
        sampling.sample_rows(*rows.operands)
    assert names == ["sample_rows_kernel"]
    with pytest.raises(LayoutError, match=r"`top_k` has dtype torch\.int64"):
        sampling.sample_rows(
            rows.logits, rows.temperature, rows.top_k.long(), rows.top_p, rows.min_p, rows.uniform
        )
    with pytest.raises(LayoutError, match=r"`uniform` has shape \[1\], expected \[2\]"):
        sampling.sample_rows(*replace(rows, uniform=rows.uniform[:1]).operands)
