"""The sampler against plain definitions, its distributions, and its independence from the batch."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.runtime.engine import SamplingParams
from tersor.runtime.engine.sampling import Sampled, SampleFailure, SamplerState, fused, sample
from tersor.runtime.engine.sampling.filters import Draw, draw
from tersor.runtime.engine.sampling.rng import uniform

DRAWS = 4000


def _state(
    vocab: int,
    *,
    seed: int = 0,
    prompt: tuple[int, ...] = (),
    stop_ids: tuple[int, ...] = (),
    **sampling: Any,
) -> SamplerState:
    return SamplerState(
        SamplingParams(**sampling), seed=seed, prompt=prompt, stop_ids=stop_ids, vocab_size=vocab
    )


def _tokens(outcomes: list[Sampled | SampleFailure]) -> list[int]:
    assert all(isinstance(outcome, Sampled) for outcome in outcomes)
    return [outcome.token_id for outcome in outcomes if isinstance(outcome, Sampled)]


def _logits(vocab: int, *, rows: int = 1, seed: int = 0) -> Tensor:
    return 2.5 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def _distribution(logits: list[float], sampling: SamplingParams) -> list[tuple[int, float]]:
    """(token, probability) of what the filters leave, by id."""
    scaled = [x / sampling.temperature for x in logits]
    top = max(scaled)
    weights = {i: math.exp(x - top) for i, x in enumerate(scaled)}
    weights = {i: w for i, w in weights.items() if w >= sampling.min_p}
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        kept = list(weights)
    else:
        kept = sorted(weights, key=lambda i: (-weights[i], i))
        if sampling.top_k:
            kept = kept[: sampling.top_k]
        total = sum(weights[i] for i in kept)
        mass, count = 0.0, 0
        while count < len(kept) and mass / total < sampling.top_p:
            mass += weights[kept[count]]
            count += 1
        kept = kept[:count]
    total = sum(weights[i] for i in kept)
    return [(i, weights[i] / total) for i in sorted(kept)]


FILTERS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.5, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.5},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.7, "top_p": 0.95},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.3, "min_p": 0.02, "top_k": 6, "top_p": 0.8},
]


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_draws_follow_the_distribution(sampling: dict[str, Any]) -> None:
    """Frequencies of seeded draws within five standard deviations of the definition."""
    vocab = 12
    logits = _logits(vocab, seed=5)
    expected = dict(_distribution(logits[0].tolist(), SamplingParams(**sampling)))
    states = [_state(vocab, seed=seed, **sampling) for seed in range(DRAWS)]
    counts = Counter(_tokens(sample(logits.expand(DRAWS, vocab), states)))
    assert set(counts) <= set(expected)
    for token, probability in expected.items():
        deviation = math.sqrt(DRAWS * probability * (1 - probability))
        assert abs(counts[token] - DRAWS * probability) <= 5 * deviation + 1e-6, token


@pytest.mark.parametrize("vocab", [7, 256, 257, 3000])
def test_a_draw_inverts_the_cumulative_distribution(vocab: int) -> None:
    """The exact token, whether few candidates or the whole row had to be sorted."""
    rng = random.Random(vocab)
    settings = [
        SamplingParams(
            temperature=rng.choice([0.2, 1.0, 4.0, 30.0]),
            top_k=rng.choice([0, 1, 5, 300]),
            top_p=rng.choice([0.3, 0.9, 0.999, 1.0]),
            min_p=rng.choice([0.0, 0.01, 0.3]),
        )
        for _ in range(120)
    ]
    logits = _logits(vocab, rows=len(settings), seed=vocab)
    draws = [Draw(s, uniform(i, 0)) for i, s in enumerate(settings)]
    got = draw(logits.clone(), draws)
    compared = 0
    for row, (settings_row, token) in enumerate(zip(settings, got, strict=True)):
        cumulative, edge = 0.0, 1.0
        expected = None
        for candidate, probability in _distribution(logits[row].tolist(), settings_row):
            cumulative += probability
            edge = min(edge, abs(cumulative - draws[row].uniform))
            if expected is None and cumulative > draws[row].uniform:
                expected = candidate
        if edge > 1e-4:  # else float32 may fall on the other side
            assert token == expected, (row, settings_row)
            compared += 1
    assert compared > 100


def test_ties_go_to_the_lower_id() -> None:
    logits = torch.zeros(1, 600)
    logits[0, 400:] = 1.0
    kept = Counter(
        _tokens(
            sample(
                logits.expand(800, 600),
                [_state(600, seed=i, temperature=1.0, top_k=3) for i in range(800)],
            )
        )
    )
    assert set(kept) == {400, 401, 402}
    assert _tokens(sample(logits, [_state(600)])) == [400]


def test_a_tiny_temperature_is_greedy_and_overflows_nothing() -> None:
    logits = _logits(50, rows=20)
    states = [_state(50, seed=i, temperature=1e-30) for i in range(20)]
    assert _tokens(sample(logits, states)) == logits.argmax(-1).tolist()


def _penalized(
    logits: list[float], prompt: list[int], output: list[int], s: SamplingParams
) -> list[float]:
    result = list(logits)
    for token in set(prompt) | set(output):
        x = result[token]
        result[token] = x / s.repetition_penalty if x > 0 else x * s.repetition_penalty
    for token, count in Counter(output).items():
        result[token] -= s.presence_penalty + s.frequency_penalty * count
    return result


@pytest.mark.parametrize("vocab", [9, 700])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(
            ("temperature", "top_p", "min_p", "repetition_penalty"), (5e-324, 1e-300, 1e-40)
        ),
        *itertools.product(("temperature", "repetition_penalty"), (1e40, 1.7e308)),
    ],
)
def test_doubles_beyond_float32_choose_a_token(name: str, value: float, vocab: int) -> None:
    """Requests carry doubles: what float32 makes 0 or infinity must not make NaN of a row."""
    logits = _logits(vocab, rows=3)
    logits[0, 2] = 0.0
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 3, name: value}
    states = [
        _state(vocab, prompt=(0, 1, 2, 3, 4), **sampling),
        _state(vocab, prompt=(0, 1, 2, 3, 4), stop_ids=(1,), min_tokens=4, **sampling),
        _state(vocab),
    ]
    for _ in range(4):
        tokens = _tokens(sample(logits, states))
        assert all(0 <= token < vocab for token in tokens)
        assert tokens[2] == int(logits[2].argmax())
        if name in {"temperature", "top_p"} and value < 1:
            assert tokens[0] == int(logits[0].argmax())


@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.6},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -2.0},
        {"repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.9},
    ],
    ids=str,
)
def test_penalties(penalties: dict[str, Any]) -> None:
    """Adjusted logits and greedy tokens over a growing answer, against the definition."""
    vocab, prompt = 9, (1, 4, 4, 7)
    state = _state(vocab, prompt=prompt, **penalties)
    output: list[int] = []
    for step in range(12):
        logits = _logits(vocab, seed=step)
        expected = _penalized(logits[0].tolist(), list(prompt), output, state.sampling)
        before = logits.clone()
        torch.testing.assert_close(state.adjust(logits[0]), torch.tensor(expected))
        token = _tokens(sample(logits, [state]))[0]
        assert token == max(range(vocab), key=expected.__getitem__)
        assert torch.equal(logits, before)
        output.append(token)


def test_stop_tokens_wait_for_min_tokens() -> None:
    logits = torch.tensor([[0.0, 9.0, 5.0, 1.0]])
    state = _state(4, stop_ids=(1, 2), min_tokens=2)
    assert [_tokens(sample(logits, [state]))[0] for _ in range(4)] == [3, 3, 1, 1]


def test_a_row_fails_alone() -> None:
    """NaN, nothing finite, or everything forbidden."""
    logits = _logits(5, rows=5)
    logits[1, 2] = float("nan")
    logits[3] = float("-inf")
    states = [_state(5), _state(5), _state(5, temperature=1.0), _state(5, temperature=1.0)]
    states.append(_state(5, stop_ids=(0, 1, 2, 3, 4), min_tokens=1))
    outcomes = sample(logits, states)
    assert [isinstance(outcome, Sampled) for outcome in outcomes] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert [state.generated for state in states] == [1, 0, 1, 0, 0]


def test_logprobs_are_the_raw_models() -> None:
    vocab = 30
    logits = _logits(vocab, rows=3)
    states = [
        _state(vocab, logprobs=4, temperature=1.4, seed=3, repetition_penalty=1.5, prompt=(2,)),
        _state(vocab),
        _state(vocab, logprobs=0),
    ]
    first, second, third = sample(logits, states)
    assert isinstance(first, Sampled)
    assert isinstance(second, Sampled)
    assert isinstance(third, Sampled)
    assert second.logprobs is None
    assert first.logprobs is not None
    assert third.logprobs is not None
    reference = [row - row.exp().sum().log() for row in logits.double()]
    best = sorted(range(vocab), key=lambda i: -reference[0][i].item())
    assert first.logprobs.token_id == first.token_id
    assert first.logprobs.rank == best.index(first.token_id) + 1
    assert list(first.logprobs.top) == best[:4]
    for token, logprob in {**first.logprobs.top, first.token_id: first.logprobs.logprob}.items():
        assert logprob == pytest.approx(reference[0][token].item(), abs=1e-5)
    assert (third.logprobs.rank, third.logprobs.top) == (1, {})
    assert third.logprobs.logprob == pytest.approx(reference[2].max().item(), abs=1e-5)


def test_a_choice_does_not_depend_on_the_batch() -> None:
    """The same rows alone, together and in another order, with all kinds of parameters."""
    vocab = 700
    rng = random.Random(4)
    kinds: list[dict[str, Any]] = [
        *FILTERS,
        {"temperature": 1.0, "top_k": 500},
        {"temperature": 25.0, "top_p": 0.9},
        {"repetition_penalty": 1.7},
        {"temperature": 0.8, "frequency_penalty": 0.5, "logprobs": 3},
        {},
    ]
    rows = [{**rng.choice(kinds), "seed": i} for i in range(48)]
    logits = _logits(vocab, rows=48, seed=9)

    def run(order: list[int]) -> dict[int, list[int]]:
        states = [_state(vocab, prompt=(3, 5), **rows[i]) for i in order]
        steps = [_tokens(sample(logits[order].roll(step, -1), states)) for step in range(3)]
        return {row: [tokens[at] for tokens in steps] for at, row in enumerate(order)}

    together = run(list(range(48)))
    shuffled = run(rng.sample(range(48), 48))
    assert together == shuffled
    for row in range(48):
        assert run([row])[row] == together[row]


def test_uniform_numbers() -> None:
    values = [uniform(seed, position) for seed in range(-50, 50) for position in range(100)]
    assert len(set(values)) > 9980
    assert all(0.0 <= value < 1.0 for value in values)
    for part in (values, values[::100], values[:100]):
        assert abs(sum(part) / len(part) - 0.5) < 3 * math.sqrt(1 / 12 / len(part))
    assert uniform(7, 3) == uniform(7, 3) != uniform(3, 7)
    assert uniform((1 << 64) - 1, 0) == uniform(-1, 0)  # the same 64 bits


def test_a_gpu_is_asked_for_the_same_tokens() -> None:
    """All kinds of rows through the one operator that a GPU runs, here by its definition."""
    vocab = 300
    rng = random.Random(8)
    kinds: list[dict[str, Any]] = [
        *FILTERS,
        {},
        {"temperature": 1e-300},
        {"top_p": 5e-324, "temperature": 1.0},
        {"repetition_penalty": 1.7},
        {"temperature": 0.8, "frequency_penalty": 0.5, "top_k": 20},
    ]
    rows = [{**rng.choice(kinds), "seed": i} for i in range(60)]
    logits = _logits(vocab, rows=60, seed=3)
    logits[[4, 9], 7] = float("nan")
    before = logits.clone()
    stops = [(7,) if i in {9, 20} else () for i in range(60)]

    def states() -> list[SamplerState]:
        return [
            _state(vocab, prompt=(3, 5), stop_ids=stop, min_tokens=bool(stop), **row)
            for row, stop in zip(rows, stops, strict=True)
        ]

    chosen = fused.choose(logits, states())
    expected = sample(logits, states())
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())
    assert chosen == [o.token_id if isinstance(o, Sampled) else -1 for o in expected]
    assert [row for row, token in enumerate(chosen) if token < 0] == [4, 9]
