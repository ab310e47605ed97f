"""What the engine answers is what the model says, whoever else is being answered."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_rig import SMALL, Rig, Sink, make_rig, tiny_model, tiny_program
from tiny_tokenizer import text_of

from tersor.bundle.program import DecoderProgram
from tersor.models.cache import GrowingCache
from tersor.runtime.config import EngineConfig
from tersor.runtime.errors import CancelledRequestError, DeadlineError

PROGRAMS: dict[str, DecoderProgram] = {
    "plain": tiny_program(),
    "windows": tiny_program(windows=(5, None)),
    "one head, biases, tied": tiny_program(
        num_heads=1, num_kv_heads=1, qkv_bias=True, qk_norm=True, tie_embeddings=True
    ),
}


def _greedy(program: DecoderProgram, prompt: tuple[int, ...], count: int) -> list[int]:
    """The plain loop over `models`' own one-sequence cache."""
    model, cache = tiny_model(program), GrowingCache()
    answer: list[int] = []
    pending, start = list(prompt), 0
    while len(answer) < count:
        positions = torch.arange(start, start + len(pending))
        logits = model.forward(torch.tensor(pending), positions, cache)
        start += len(pending)
        pending = [int(logits[-1].argmax())]
        answer += pending
    return answer


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("length", [1, 4, 8, 9, 30])
def test_greedy_is_the_models_greedy(name: str, length: int) -> None:
    """Across page and chunk boundaries: pages of 4 tokens, chunks of 8."""
    program = PROGRAMS[name]
    prompt = tuple(random.Random(length).choices(range(33, 127), k=length))  # whole characters
    rig = make_rig(tiny_model(program), program)
    sink = rig.answer(prompt, max_tokens=25, ignore_eos=True)
    assert sink.token_ids == _greedy(program, prompt, 25)
    assert sink.text == text_of(sink.token_ids)


CROWD = replace(SMALL, max_batch_size=12, max_queue_size=64, kv_cache_bytes=8 << 20)
SMALL_CROWD = replace(CROWD, kv_cache_bytes=36 * 2048)  # 36 pages: far too few for twelve answers


def _requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of all lengths, half of them sampled, with penalties, stop strings and logprobs."""
    rng = random.Random(seed)
    requests: list[dict[str, Any]] = []
    for index in range(count):
        request: dict[str, Any] = {
            "prompt": tuple(rng.choices(range(1, 257), k=rng.randint(1, 40))),
            "max_tokens": rng.randint(1, 45),
            "ignore_eos": rng.random() < 0.7,
        }
        if index % 2:
            request |= {"temperature": rng.choice([0.5, 1.0]), "seed": index}
            request |= rng.choice([{}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.05}])
        if index % 5 == 0:
            request |= {"repetition_penalty": 1.3, "logprobs": 2}
        if index % 3 == 0:
            request |= {"stop": ("e", "ab"), "min_tokens": 2 if request["max_tokens"] > 1 else 0}
        requests.append(request)
    return requests


def _alone(requests: list[dict[str, Any]], config: EngineConfig = CROWD) -> list[Sink]:
    rig = make_rig(config=config)
    return [rig.answer(**request) for request in requests]


def _assert_same(got: Sink, expected: Sink) -> None:
    assert got.text == expected.text
    assert got.token_ids == expected.token_ids
    assert got.finished.reason == expected.finished.reason
    assert got.finished.stop_match == expected.finished.stop_match
    assert [entry.rank for entry in got.logprobs] == [entry.rank for entry in expected.logprobs]


def test_32_streams_with_cancellations_and_deadlines() -> None:
    """Survivors' text is their single-request text; pages in use return to zero."""
    requests = _requests(32, seed=1)
    expected = _alone(requests)
    for order_seed in (0, 1):
        rig = make_rig(config=CROWD)
        order = random.Random(order_seed).sample(range(32), 32)
        cancelled = set(order[::3])
        late = set(order[1::8]) - cancelled
        sinks: dict[int, Sink] = {}
        for index in order:
            deadline = rig.clock.now + 12.0 if index in late else None
            handle, sinks[index] = rig.submit(deadline=deadline, **requests[index])
            if index in cancelled:
                after = len(expected[index].deltas) // 2

                def cancel(
                    _: object,
                    sink: Sink = sinks[index],
                    after: int = after,
                    stop: Any = handle.cancel,
                ) -> None:
                    if len(sink.events) == after:
                        stop()

                sinks[index].on_event = cancel
                if after == 0:
                    handle.cancel()
        rig.clock.tick = 0.01  # time passes with every step: some deadlines expire on the way
        rig.run()
        assert rig.engine.kv_pages_in_use == 0
        assert (rig.engine.running, rig.engine.waiting) == (0, 0)
        survivors = [i for i in range(32) if type(sinks[i].events[-1]).__name__ == "Finished"]
        assert len(survivors) >= 16
        for index in survivors:
            _assert_same(sinks[index], expected[index])
        errors = {i: type(sinks[i].error) for i in range(32) if i not in survivors}
        assert CancelledRequestError in errors.values()
        assert all(
            kind is (CancelledRequestError if i in cancelled else DeadlineError)
            for i, kind in errors.items()
        )
        for index in errors:  # what was sent before is a beginning of the whole answer
            assert expected[index].text.startswith(sinks[index].text)


def test_preempted_answers_are_the_same() -> None:
    """A cache that cannot hold the batch: the youngest are computed again, to the same text."""
    requests = _requests(24, seed=2)
    expected = _alone(requests)
    rig = make_rig(config=SMALL_CROWD)
    sinks = [rig.submit(**request)[1] for request in requests]
    rig.run()
    assert rig.metrics.preemptions > 5
    assert rig.engine.kv_pages_in_use == 0
    assert max(used for used, _ in rig.metrics.kv) <= 36
    for got, want in zip(sinks, expected, strict=True):
        _assert_same(got, want)
    finished = [usage.completion_tokens for _, usage in rig.metrics.finishes]
    assert sorted(finished) == sorted(len(sink.token_ids) for sink in expected)


def test_a_preempted_request_can_be_cancelled_while_it_waits() -> None:
    rig = make_rig(config=replace(SMALL, kv_cache_bytes=10 * 2048))
    _, first = rig.submit("a" * 8, max_tokens=30, ignore_eos=True)
    handle, second = rig.submit("b" * 8, max_tokens=30, ignore_eos=True)
    while not rig.metrics.preemptions:
        rig.engine.step()
    handle.cancel()
    rig.run()
    assert isinstance(second.error, CancelledRequestError)
    assert len(first.token_ids) == 30
    assert rig.engine.kv_pages_in_use == 0


def _log(rig: Rig) -> list[tuple[float, int]]:
    return rig.metrics.prefills


def test_prefill_chunks_depend_on_the_prompt_alone() -> None:
    alone = make_rig(config=CROWD)
    alone.answer("x" * 21, max_tokens=2)
    assert [tokens for _, tokens in _log(alone)] == [8, 8, 5]
    crowd = make_rig(config=CROWD)
    for length in (3, 21, 11):
        crowd.submit("x" * length, max_tokens=2)
    crowd.run()
    # A step computes at most 8 prompt tokens: 3, then a chunk of 8 does not fit, and so on.
    assert [tokens for _, tokens in _log(crowd)] == [3, 8, 8, 5, 8, 3]


def test_running_answers_do_not_stall_behind_a_long_prompt() -> None:
    rig = make_rig(config=CROWD)
    _, first = rig.submit("ab", max_tokens=40, ignore_eos=True)
    rig.engine.step()
    rig.submit("x" * 80, max_tokens=1)
    for _ in range(10):  # ten chunks
        before = len(rig.metrics.inter_tokens)
        rig.engine.step()
        assert len(rig.metrics.inter_tokens) == before + 1
    assert len(_log(rig)) == 11
    rig.run()
    assert len(first.token_ids) == 40


def test_first_come_first_served() -> None:
    rig = make_rig(config=replace(SMALL, max_batch_size=1))
    order: list[int] = []
    for index in range(5):
        _, sink = rig.submit("x" * (5 - index), max_tokens=2)
        sink.on_event = lambda _, index=index: order.append(index)  # type: ignore[misc]
    rig.run()
    assert order == sorted(order)
    assert set(order) == set(range(5))
