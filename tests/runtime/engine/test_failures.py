"""What goes wrong for one request, and what for all; the engine stays up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_rig import SMALL, Rig, ScriptedModel, make_rig
from tiny_tokenizer import byte_tokenizer, ids_of

from tersor.bundle.errors import BundleCorruptError
from tersor.kernels.errors import TuningError
from tersor.models.errors import TokenizerError, WeightError
from tersor.models.tokenizer import Tokenizer
from tersor.runtime.engine import Event, TextDelta
from tersor.runtime.errors import (
    CancelledRequestError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    ModelLoadError,
    OutOfMemoryError,
    OverloadedError,
    ShuttingDownError,
)

SCRIPT = ids_of("." * 96)


def _scripted(**settings: Any) -> tuple[Rig, ScriptedModel]:
    model = ScriptedModel(SCRIPT)
    return make_rig(model, **settings), model


def _assert_idle(rig: Rig) -> None:
    assert rig.engine.kv_pages_in_use == 0
    assert (rig.engine.running, rig.engine.waiting) == (0, 0)
    assert rig.metrics.depths[-1] == (0, 0)
    assert rig.metrics.kv[-1][0] == 0


def test_cancelling_frees_the_pages_within_one_step() -> None:
    rig, _ = _scripted()
    running, sink = rig.submit("running", max_tokens=50)
    rig.engine.step()
    assert rig.engine.kv_pages_in_use == 2
    running.cancel()
    running.cancel()
    rig.engine.step()
    assert isinstance(sink.error, CancelledRequestError)
    waiting, other = rig.submit("waiting")
    waiting.cancel()
    rig.engine.step()
    assert isinstance(other.error, CancelledRequestError)
    assert other.deltas == []
    running.cancel()
    _assert_idle(rig)
    assert rig.metrics.failures == ["cancelled", "cancelled"]


def test_deadlines() -> None:
    rig, _ = _scripted(config=replace(SMALL, max_batch_size=1))
    now = rig.clock.now
    with pytest.raises(DeadlineError, match="after 0 tokens"):
        rig.submit("late", deadline=now)
    _, running = rig.submit("running", max_tokens=50, deadline=now + 5)
    _, waiting = rig.submit("waiting", max_tokens=50, deadline=now + 4)
    rig.engine.step()
    rig.clock.now = now + 4
    rig.engine.step()
    assert isinstance(waiting.error, DeadlineError)
    assert not running.ended
    rig.clock.now = now + 5
    rig.engine.step()
    assert isinstance(running.error, DeadlineError)
    assert len(running.token_ids) == 3
    _assert_idle(rig)


def test_a_full_queue_is_refused_with_a_hint() -> None:
    rig, _ = _scripted(config=replace(SMALL, max_batch_size=2, max_queue_size=3))
    for _ in range(5):
        rig.submit("x", max_tokens=10)
    with pytest.raises(OverloadedError, match="0 requests running and 5 waiting") as caught:
        rig.submit("x")
    assert caught.value.retry_after_seconds == 1.0  # nothing measured yet
    rig.engine.step()
    with pytest.raises(OverloadedError, match="2 requests running and 3 waiting"):
        rig.submit("x")
    rig.run()
    rig.submit("x")
    assert rig.metrics.failures == ["overloaded", "overloaded"]


def test_the_retry_hint_follows_the_measured_rates() -> None:
    rig, model = _scripted(config=replace(SMALL, max_batch_size=2, max_queue_size=1))

    def passing() -> None:
        rig.clock.now += 0.5

    model.on_pass = passing
    rig.answer("x", max_tokens=9)
    for _ in range(3):
        rig.submit("x", max_tokens=9)
    with pytest.raises(OverloadedError) as caught:
        rig.submit("x")
    # Nine tokens at half a second, two at a time: a place every 9 * 0.5 / 2 seconds.
    assert caught.value.retry_after_seconds == pytest.approx(2.25)


def test_a_deadline_that_the_queue_cannot_meet_is_refused_early() -> None:
    rig, model = _scripted(config=replace(SMALL, max_batch_size=1))

    def passing() -> None:
        rig.clock.now += 0.5

    model.on_pass = passing
    # Nothing is known yet, so the request is tried.
    _, tried = rig.submit("xx", max_tokens=8, deadline=rig.clock.now + 0.1)
    rig.run()
    assert isinstance(tried.error, DeadlineError)
    rig.answer("xx", max_tokens=8)  # a quarter second a prompt token, 4 s an answer
    # An idle engine tries even so, since the rates could be outdated.
    rig.submit("xx", max_tokens=8, deadline=rig.clock.now + 0.4)
    rig.run()
    rig.submit("xx", max_tokens=8)
    rig.engine.step()
    rig.submit("xx", max_tokens=8)
    # Two sequences must leave first (8 s), then two prompts of two tokens (1 s).
    with pytest.raises(OverloadedError, match=r"expected in 9 s, but the deadline is in 8\.5 s"):
        rig.submit("xx", deadline=rig.clock.now + 8.5)
    _, kept = rig.submit("xx", max_tokens=1, deadline=rig.clock.now + 9.5)
    rig.run()
    assert len(kept.token_ids) == 1


def test_a_bad_sink_ends_its_own_request_only(caplog: pytest.LogCaptureFixture) -> None:
    rig, _ = _scripted()
    _, bad = rig.submit("bad", max_tokens=5)
    _, good = rig.submit("good", max_tokens=5)

    def fail(event: Event) -> None:
        if isinstance(event, TextDelta) and len(bad.events) == 2:
            raise RuntimeError("the caller's defect")

    bad.on_event = fail
    rig.run()
    assert len(bad.events) == 2
    assert len(good.token_ids) == 5
    assert "the sink of tiny-0 failed" in caplog.text
    assert rig.metrics.failures == ["internal"]
    _assert_idle(rig)


def test_a_sink_that_fails_on_the_last_event() -> None:
    rig, _ = _scripted()
    _, sink = rig.submit("x", max_tokens=1)

    def fail(event: Event) -> None:
        if not isinstance(event, TextDelta):
            raise RuntimeError("the caller's defect")

    sink.on_event = fail
    rig.run()
    assert sink.finished.usage.completion_tokens == 1
    assert rig.metrics.failures == []
    _assert_idle(rig)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (BundleCorruptError("chunk 3 of layers.0.qkv is damaged"), ModelLoadError),
        (WeightError("weight 'head' is missing"), ModelLoadError),
        (TuningError("tuning table t.json: version is 2"), ModelLoadError),
        (ModelLoadError("as residency says it"), ModelLoadError),
        (OutOfMemoryError("the budget is too small"), OutOfMemoryError),
        (ShuttingDownError("the model is being unloaded"), ShuttingDownError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_weights_that_cannot_be_loaded_fail_everyone_who_waits(
    cause: Exception, kind: type[Exception]
) -> None:
    rig, model = _scripted(config=replace(SMALL, max_batch_size=2))
    model.fail = cause
    sinks = [rig.submit("x" * 9, max_tokens=3)[1] for _ in range(5)]
    rig.engine.step()
    assert len(model.passes) == 1  # one load was tried, not five in a row
    errors = [sink.error for sink in sinks]
    assert all(type(error) is kind and str(cause) in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 5
    _assert_idle(rig)
    model.fail = None
    assert len(rig.answer("x", max_tokens=3).token_ids) == 3


def test_weights_lost_while_decoding() -> None:
    rig, model = _scripted(config=replace(SMALL, max_batch_size=2))
    sinks = [rig.submit("x", max_tokens=9)[1] for _ in range(3)]
    rig.engine.step()
    model.fail = BundleCorruptError("gone")
    rig.run()
    assert all(isinstance(sink.error, ModelLoadError) for sink in sinks)
    assert [len(sink.deltas) > 0 for sink in sinks] == [True, True, False]
    _assert_idle(rig)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (RuntimeError("a kernel's defect"), InternalError),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemoryError),
    ],
    ids=["defect", "memory"],
)
def test_a_pass_that_fails_ends_only_the_requests_it_fails_for(
    cause: Exception, kind: type[Exception]
) -> None:
    rig, model = _scripted()
    bad, good, also = (rig.submit(text, max_tokens=4)[1] for text in ("b", "g", "a"))
    model.fail, model.poisoned = cause, frozenset(ids_of("b"))
    rig.run()  # the prompt itself is poisoned
    assert type(bad.error) is kind
    assert len(good.token_ids) == len(also.token_ids) == 4
    # Now a batch of three fails while decoding: each is tried alone.
    model.poisoned = frozenset(ids_of("x"))
    sinks = [rig.submit(text, max_tokens=4)[1] for text in ("1", "22", "333")]
    script = dict(enumerate(SCRIPT)) | {3: ids_of("x")[0]}
    model._script = script  # the answer's token at position 3 is poison: "1" and "22" reach it
    rig.run()
    assert type(sinks[0].error) is kind
    assert type(sinks[1].error) is kind
    assert type(sinks[2].error) is kind
    _assert_idle(rig)
    model.fail = None
    assert len(rig.answer("x", max_tokens=3).token_ids) == 3


def test_one_poisoned_sequence_of_a_batch() -> None:
    rig, model = _scripted()
    sinks = [rig.submit(text, max_tokens=6)[1] for text in ("1", "22", "4444")]
    model._script = dict(enumerate(SCRIPT)) | {3: ids_of("x")[0]}
    model.fail, model.poisoned = RuntimeError("a defect"), frozenset(ids_of("x"))
    rig.run()
    assert isinstance(sinks[0].error, InternalError)
    assert isinstance(sinks[1].error, InternalError)
    assert len(sinks[2].token_ids) == 6
    _assert_idle(rig)


class _Choking(Tokenizer):
    """Fails on texts and on tokens with an x in them."""

    def encode_types(self, text: str, *, special_tokens: bool) -> tuple[list[int], list[int]]:
        if "x" in text:
            raise TokenizerError("no x")
        return super().encode_types(text, special_tokens=special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        if ids_of("x")[0] in ids:
            raise TokenizerError("no x")
        return super().decode(ids, skip_special_tokens)


def test_a_tokenizer_that_fails_ends_only_the_requests_it_fails_for() -> None:
    model = ScriptedModel(dict(enumerate(SCRIPT)) | {3: ids_of("x")[0]})
    rig = make_rig(model, tokenizer=_Choking(byte_tokenizer()._backend))
    reaches_it, also, passed_it = (rig.submit(t, max_tokens=5)[1] for t in ("1", "22", "4444"))
    rig.run()
    for sink in (reaches_it, also):
        assert isinstance(sink.error, InternalError)
        assert "no x" in str(sink.error)
    assert len(passed_it.token_ids) == 5
    _assert_idle(rig)
    with pytest.raises(InvalidRequestError, match="makes no tokens: no x"):
        rig.submit("an x")
    with pytest.raises(InvalidRequestError, match="make no text: no x"):
        rig.submit(ids_of("x"))
    assert len(rig.answer("5555", max_tokens=3).token_ids) == 3


def test_nan_logits_end_their_own_request() -> None:
    rig, model = _scripted()
    model.nan_tokens = frozenset(ids_of("n"))
    bad, good = (rig.submit(text, max_tokens=4)[1] for text in ("n", "g"))
    rig.run()
    assert isinstance(bad.error, InternalError)
    assert "no finite maximum" in str(bad.error)
    assert len(good.token_ids) == 4
    _assert_idle(rig)
