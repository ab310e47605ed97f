"""The engine's own thread: many submitters, draining, idleness, defects."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from engine_rig import SMALL, Rig, ScriptedModel, Sink, make_rig
from tiny_tokenizer import ids_of

from tersor.runtime.engine import Event, Failed, Finished, GenerationRequest, SamplingParams
from tersor.runtime.errors import CancelledRequestError, InternalError, ShuttingDownError

WAIT_SECONDS = 20.0  # far beyond what anything takes; only a failing test waits that long


class Awaited(Sink):
    """A sink whose end can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.done = threading.Event()
        self.threads: set[str] = set()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        self.threads.add(threading.current_thread().name)
        if isinstance(event, Finished | Failed):
            self.done.set()

    def wait(self) -> None:
        assert self.done.wait(WAIT_SECONDS)


class GatedModel(ScriptedModel):
    """Waits in every pass until the gate is open."""

    def __init__(self) -> None:
        super().__init__(ids_of("." * 96))
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.on_pass = self._wait

    def _wait(self) -> None:
        self.entered.set()
        assert self.gate.wait(WAIT_SECONDS)


def _submit(rig: Rig, prompt: str, **sampling: Any) -> Awaited:
    sink = Awaited()
    rig.engine.submit(GenerationRequest(prompt=prompt, sampling=SamplingParams(**sampling)), sink)
    return sink


def test_many_threads_submit_and_cancel() -> None:
    alone = make_rig()
    expected = {n: alone.answer("x" * n, max_tokens=12, ignore_eos=True).text for n in range(1, 9)}
    rig = make_rig(config=replace(SMALL, max_queue_size=64), threaded=True)
    sinks: dict[tuple[int, int], Awaited] = {}

    def client(number: int) -> None:
        for n in range(1, 9):
            sink = sinks[number, n] = Awaited()
            sampling = SamplingParams(max_tokens=12, ignore_eos=True)
            handle = rig.engine.submit(GenerationRequest(prompt="x" * n, sampling=sampling), sink)
            if (number + n) % 3 == 0:
                handle.cancel()
            sink.wait()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert len(sinks) == 48
    for (_, n), sink in sinks.items():
        assert sink.threads == {"engine-tiny"}
        if isinstance(sink.events[-1], Finished):
            assert sink.text == expected[n]
        else:
            assert isinstance(sink.error, CancelledRequestError)
    rig.engine.close()
    assert rig.engine.kv_pages_in_use == 0
    rig.engine.check_integrity()


def test_close_lets_running_requests_finish_within_the_grace() -> None:
    model = GatedModel()
    rig = make_rig(model, threaded=True, config=replace(SMALL, max_batch_size=1))
    sinks = [_submit(rig, "x", max_tokens=5) for _ in range(3)]
    assert model.entered.wait(WAIT_SECONDS)
    closing = threading.Thread(target=rig.engine.close, args=(60.0,))
    closing.start()
    while rig.engine._drain_limit is None:
        time.sleep(0.001)
    with pytest.raises(ShuttingDownError, match="model tiny is shutting down"):
        rig.submit("late")
    model.gate.set()
    closing.join(WAIT_SECONDS)
    assert not closing.is_alive()
    assert [len(sink.token_ids) for sink in sinks] == [5, 5, 5]
    assert rig.metrics.failures == ["shutting_down"]


def test_close_fails_what_the_grace_does_not_suffice_for() -> None:
    model = GatedModel()
    rig = make_rig(model, threaded=True, config=replace(SMALL, max_batch_size=1))
    sinks = [_submit(rig, "x", max_tokens=5) for _ in range(3)]
    assert model.entered.wait(WAIT_SECONDS)
    closing = threading.Thread(target=rig.engine.close, args=(3.0,))
    closing.start()
    while rig.engine._drain_limit is None:
        time.sleep(0.001)
    rig.clock.now += 3.0  # the grace passes inside the first pass
    model.gate.set()
    closing.join(WAIT_SECONDS)
    assert not closing.is_alive()
    assert all(isinstance(sink.error, ShuttingDownError) for sink in sinks)
    assert len(sinks[0].token_ids) >= 1
    assert rig.engine.kv_pages_in_use == 0
    rig.engine.close()  # again is nothing


def test_an_idle_engine_does_not_step() -> None:
    rig = make_rig(threaded=True)
    _submit(rig, "x", max_tokens=2).wait()
    deadline = time.monotonic() + WAIT_SECONDS
    while rig.engine._scheduler.busy and time.monotonic() < deadline:
        time.sleep(0.001)
    readings = 0
    step = rig.engine.step

    def counted() -> bool:
        nonlocal readings
        readings += 1
        return step()

    rig.engine.step = counted  # type: ignore[method-assign]
    time.sleep(0.05)
    assert readings == 0
    _submit(rig, "x", max_tokens=2).wait()
    assert readings > 0
    rig.engine.close()


def test_a_step_that_fails_ends_the_requests_and_not_the_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = make_rig(threaded=True)
    observer = rig.metrics

    def broken(seconds: float, tokens: int) -> None:
        raise RuntimeError("the observer's defect")

    observer.prefill = broken  # type: ignore[method-assign]
    sinks = [_submit(rig, "x", max_tokens=2) for _ in range(2)]
    for sink in sinks:
        sink.wait()
        assert isinstance(sink.error, InternalError)
    del observer.prefill
    healed = _submit(rig, "x", max_tokens=2)
    healed.wait()
    assert len(healed.token_ids) == 2
    rig.engine.close()
    assert rig.engine.kv_pages_in_use == 0
    assert "a step failed" in caplog.text


def test_an_engine_without_a_thread_drains_when_closed() -> None:
    rig = make_rig()
    _, sink = rig.submit("x", max_tokens=3)
    rig.engine.close(drain_seconds=1.0)
    assert len(sink.token_ids) == 3
    _, threads = rig.engine.running, threading.enumerate()
    assert not [thread for thread in threads if thread.name == "engine-tiny" and thread.is_alive()]
