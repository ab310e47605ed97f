"""The sampler on a CUDA device, against float64 sorting."""

from __future__ import annotations

import pytest
import torch
from poison import poisoned_memory
from sampling_cases import assert_tokens, random_rows

from tersor.kernels.sampling import sample_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("vocab", "count"), [(1, 4), (7, 60), (1025, 200), (32000, 100), (128256, 60)]
)
def test_tokens(vocab: int, count: int, ties: bool) -> None:
    rows = random_rows(vocab, count, seed=vocab, ties=ties)
    with poisoned_memory():
        tokens = sample_rows(*rows.to(GPU).operands)
    assert_tokens(tokens.cpu(), rows)


def test_a_token_does_not_depend_on_the_batch() -> None:
    rows = random_rows(32000, 48).to(GPU)
    together = sample_rows(*rows.operands)
    for row in range(48):
        alone = (operand[row : row + 1].contiguous() for operand in rows.operands)
        assert torch.equal(sample_rows(*alone), together[row : row + 1])


def test_rows_without_a_finite_maximum_have_no_token() -> None:
    rows = random_rows(5000, 8)
    rows.logits[0, 4321] = float("nan")
    rows.logits[1] = float("-inf")
    rows.logits[2, 4] = float("inf")
    tokens = sample_rows(*rows.to(GPU).operands)
    assert (tokens >= 0).tolist() == [False] * 3 + [True] * 5


def test_extreme_temperatures_choose_a_token() -> None:
    rows = random_rows(5000, 6).to(GPU)
    limits = torch.finfo(torch.float32)
    rows.temperature.copy_(torch.tensor([limits.tiny, 1e-30, 1e-6, 1e6, 1e30, limits.max]))
    tokens = sample_rows(*rows.operands)
    assert torch.equal(tokens[:3], rows.logits[:3].argmax(-1))
    assert bool((tokens >= 0).all())


def test_sampling_is_captured_by_a_cuda_graph() -> None:
    rows = random_rows(32000, 16).to(GPU)
    expected = sample_rows(*rows.operands)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample_rows(*rows.operands)
    graph.replay()
    assert torch.equal(captured, expected)
