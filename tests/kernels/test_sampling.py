"""The sampler's definition against plain sorting, and its operator as torch's tools see it."""

from __future__ import annotations

import pytest
import torch
from sampling_cases import assert_tokens, random_rows

from tersor.kernels.sampling import sample_rows


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("vocab", "count"), [(1, 4), (7, 60), (300, 200), (5000, 60)])
def test_tokens(vocab: int, count: int, ties: bool) -> None:
    rows = random_rows(vocab, count, seed=vocab, ties=ties)
    assert_tokens(sample_rows(*rows.operands), rows)


def test_rows_without_a_finite_maximum_have_no_token() -> None:
    rows = random_rows(70, 4)
    rows.logits[0, 66] = float("nan")
    rows.logits[1] = float("-inf")
    rows.logits[2, 4] = float("inf")
    tokens = sample_rows(*rows.operands)
    assert tokens[:3].tolist() == [-1] * 3
    assert int(tokens[3]) >= 0


def test_sampling_passes_opcheck() -> None:
    rows = random_rows(9, 5)
    torch.library.opcheck(torch.ops.tersor.sample_rows.default, rows.operands)
