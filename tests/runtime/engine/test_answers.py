"""How answers end, and the deltas they are sent in."""

from __future__ import annotations

from typing import Any

import pytest
from engine_rig import Rig, ScriptedModel, Sink, make_rig, tiny_program
from tiny_tokenizer import EOS, ids_of

from tersor.runtime.engine import FinishReason

PROMPT = "ask:"


def _scripted(answer: str | tuple[int, ...], **program: Any) -> Rig:
    """An engine whose model continues `PROMPT` with `answer`, then with "!" for ever."""
    tokens = ids_of(answer) if isinstance(answer, str) else answer
    script = (*ids_of(PROMPT), *tokens, *ids_of("!" * 60))
    return make_rig(ScriptedModel(script), tiny_program(**program))


def _ends(sink: Sink, text: str, reason: FinishReason, match: str | int | None) -> None:
    assert sink.text == text
    assert (sink.finished.reason, sink.finished.stop_match) == (reason, match)
    assert sink.finished.usage.completion_tokens == len(sink.token_ids)


def test_max_tokens() -> None:
    sink = _scripted("hello").answer(PROMPT, max_tokens=3)
    _ends(sink, "hel", FinishReason.LENGTH, None)
    assert [delta.text for delta in sink.deltas] == ["h", "e", "l"]
    assert sink.finished.usage.prompt_tokens == 4


def test_the_context_clips_max_tokens() -> None:
    sink = _scripted("hello", max_context=7).answer(PROMPT, max_tokens=1000)
    _ends(sink, "hel", FinishReason.LENGTH, None)


def test_end_of_sequence() -> None:
    answer = (*ids_of("hi"), EOS, *ids_of("more"))
    sink = _scripted(answer).answer(PROMPT, max_tokens=9)
    _ends(sink, "hi", FinishReason.STOP, EOS)
    assert sink.token_ids == [*ids_of("hi"), EOS]
    ignored = _scripted(answer).answer(PROMPT, max_tokens=5, ignore_eos=True)
    _ends(ignored, "himo", FinishReason.LENGTH, None)


def test_stop_token_ids() -> None:
    sink = _scripted("abcde").answer(PROMPT, stop_token_ids=ids_of("d"), ignore_eos=True)
    _ends(sink, "abc", FinishReason.STOP, ids_of("d")[0])


def test_min_tokens_holds_ends_off() -> None:
    """The model wants to end at once; the next best token is taken until it may."""
    sink = _scripted((EOS,) * 10).answer(PROMPT, min_tokens=3, max_tokens=8)
    assert len(sink.token_ids) == 4
    assert sink.token_ids[-1] == EOS
    assert EOS not in sink.token_ids[:3]
    _ends(
        _scripted("aXbXcX").answer(PROMPT, stop=("X",), min_tokens=3), "aXb", FinishReason.STOP, "X"
    )
    # The beginning of a stop string that lies within min_tokens does not count.
    late = _scripted("aXYbXY").answer(PROMPT, stop=("XY",), min_tokens=3)
    _ends(late, "aXYb", FinishReason.STOP, "XY")


@pytest.mark.parametrize(
    ("answer", "stop", "text", "match"),
    [
        ("one. two", (".",), "one", "."),
        ("say STOP now", ("STOP",), "say ", "STOP"),
        ("aaab", ("aab",), "a", "aab"),
        ("x\n\ny", ("\n\n", "y"), "x", "\n\n"),
        ("début é fin", ("é f",), "début ", "é f"),
    ],
)
def test_stop_strings(answer: str, stop: tuple[str, ...], text: str, match: str) -> None:
    sink = _scripted(answer).answer(PROMPT, stop=stop, max_tokens=30)
    _ends(sink, text, FinishReason.STOP, match)


def test_a_possible_stop_string_is_held_back_and_given_out_at_the_end() -> None:
    sink = _scripted("aSTObST").answer(PROMPT, stop=("STOP",), max_tokens=7)
    _ends(sink, "aSTObST", FinishReason.LENGTH, None)
    assert [delta.text for delta in sink.deltas] == ["a", "STOb", "ST"]
    assert [len(delta.token_ids) for delta in sink.deltas] == [1, 4, 2]


def test_characters_are_never_cut() -> None:
    sink = _scripted("é→𝄞x").answer(PROMPT, max_tokens=10)
    assert [delta.text for delta in sink.deltas] == ["é", "→", "𝄞", "x"]
    assert [len(delta.token_ids) for delta in sink.deltas] == [2, 3, 4, 1]
    cut = _scripted("a𝄞").answer(PROMPT, max_tokens=3)  # ends inside the character
    assert cut.text.startswith("a")
    assert set(cut.text[1:]) == {"\ufffd"}
    assert len(cut.token_ids) == 3


def test_an_answer_without_text_still_reports_its_tokens() -> None:
    sink = _scripted((EOS,)).answer(PROMPT)
    _ends(sink, "", FinishReason.STOP, EOS)
    assert sink.token_ids == [EOS]


def test_logprobs_cover_every_token() -> None:
    sink = _scripted("hi").answer(PROMPT, max_tokens=4, logprobs=1)
    assert [entry.token_id for entry in sink.logprobs] == sink.token_ids
    assert [list(entry.top) for entry in sink.logprobs] == [[id_] for id_ in sink.token_ids]
    total = sum(entry.logprob for entry in sink.logprobs)
    assert sink.finished.cumulative_logprob == pytest.approx(total)
    assert _scripted("hi").answer(PROMPT, max_tokens=2).finished.cumulative_logprob is None


def test_requests_without_a_seed_differ_and_with_one_repeat() -> None:
    rig = make_rig()
    free = {rig.answer("x", max_tokens=12, temperature=1.0).text for _ in range(3)}
    assert len(free) == 3
    seeded = {rig.answer("x", max_tokens=12, temperature=1.0, seed=5).text for _ in range(3)}
    assert len(seeded) == 1


def test_usage_partitions_the_time() -> None:
    """Queue, load, prefill and decode add up to the whole, and loading is told apart."""
    waited = [0.0]
    rig = _scripted("hello")
    model = ScriptedModel((*ids_of(PROMPT), *ids_of("hello")))
    rig = make_rig(model, load_seconds=lambda: waited[0])

    def passing() -> None:
        rig.clock.now += 2.0
        if len(model.passes) in (1, 3):  # the prefill and the second decode step wait for weights
            rig.clock.now += 5.0
            waited[0] += 5.0

    model.on_pass = passing
    _, sink = rig.submit(PROMPT, max_tokens=4)
    rig.clock.now += 1.0
    rig.run()
    usage = sink.finished.usage
    assert usage.queue_seconds == pytest.approx(1.0)
    assert usage.load_seconds == pytest.approx(10.0)
    assert usage.prefill_seconds == pytest.approx(2.0)
    assert usage.decode_seconds == pytest.approx(6.0)
    assert usage.time_to_first_token_seconds == pytest.approx(8.0)
    metrics = rig.metrics
    assert metrics.queued_seconds == pytest.approx([1.0])
    assert metrics.first_tokens == [(8.0, True)]
    assert metrics.inter_tokens == pytest.approx([2.0, 7.0, 2.0])
    assert metrics.prefills == [(2.0, 4)]
    assert metrics.decode_steps == [(2.0, 1)] * 3
    assert metrics.finishes == [(FinishReason.LENGTH, usage)]
    assert metrics.kv[0][0] == metrics.kv[-1][0] == 0
    assert metrics.depths[-1] == (0, 0)
