"""Events cross from engine threads to the loop in order, in batches, and cancellation goes back."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fake_models import FakeDecoderEngine, FakeHandle

from tersor.runtime.engine.types import (
    Event,
    EventSink,
    Failed,
    GenerationRequest,
    SamplingParams,
    TextDelta,
)
from tersor.runtime.errors import CancelledRequestError
from tersor.runtime.server.bridge import LONG_PROMPT, EventBridge

LAST = Failed(error=CancelledRequestError("over"))


def request(prompt: str = "p") -> GenerationRequest:
    return GenerationRequest(prompt=prompt, sampling=SamplingParams())


def delta(text: str) -> TextDelta:
    return TextDelta(text=text, token_ids=())


class ManualEngine(FakeDecoderEngine):
    """Hands its sink to the test."""

    sink: EventSink

    def __init__(self) -> None:
        super().__init__()
        self.handle = FakeHandle(request_id="0")
        self.submitting_thread: threading.Thread | None = None
        self.may_submit = threading.Event()
        self.may_submit.set()

    def submit(self, request: GenerationRequest, sink: EventSink) -> FakeHandle:
        self.may_submit.wait()
        self.submitting_thread = threading.current_thread()
        self.sink = sink
        return self.handle


def in_thread(*calls: tuple[EventSink, Event]) -> None:
    thread = threading.Thread(target=lambda: [sink(event) for sink, event in calls])
    thread.start()
    thread.join()


def test_events_keep_their_order_and_come_in_batches() -> None:
    async def main() -> None:
        bridge, engine = EventBridge(asyncio.get_running_loop()), ManualEngine()
        async with bridge.generation(engine, request(), whole=False) as (_, stream):
            in_thread(*((engine.sink, delta(str(i))) for i in range(3)))
            batch = await stream.batch()
            assert [event.text for event in batch if isinstance(event, TextDelta)] == list("012")
            in_thread((engine.sink, LAST))
            assert await stream.batch() == [LAST]
        assert not engine.handle.cancelled.is_set()

    asyncio.run(main())


def test_one_wake_up_serves_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        bridge = EventBridge(loop)
        engines = [ManualEngine() for _ in range(8)]
        wakeups = 0
        real = loop.call_soon_threadsafe

        def counted(*args: object, **kwargs: object) -> object:
            nonlocal wakeups
            wakeups += 1
            return real(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        async with asyncio.timeout(5):
            contexts = [bridge.generation(engine, request(), whole=False) for engine in engines]
            streams = [(await context.__aenter__())[1] for context in contexts]
            in_thread(*((engine.sink, LAST) for engine in engines))
            for stream in streams:
                assert await stream.batch() == [LAST]
        assert wakeups == 1

    asyncio.run(main())


def test_a_whole_stream_wakes_its_reader_only_at_the_end() -> None:
    async def main() -> None:
        bridge, engine = EventBridge(asyncio.get_running_loop()), ManualEngine()
        async with bridge.generation(engine, request(), whole=True) as (_, stream):
            reading = asyncio.create_task(stream.batch())
            in_thread((engine.sink, delta("a")))
            await asyncio.sleep(0.01)
            assert not reading.done()
            in_thread((engine.sink, LAST))
            assert len(await reading) == 2

    asyncio.run(main())


def test_the_last_text_comes_with_the_end() -> None:
    async def main() -> None:
        bridge, engine = EventBridge(asyncio.get_running_loop()), ManualEngine()
        last = TextDelta(text="b", token_ids=(), last=True)
        async with bridge.generation(engine, request(), whole=False) as (_, stream):
            in_thread((engine.sink, last))
            reading = asyncio.create_task(stream.batch())
            await asyncio.sleep(0.01)
            assert not reading.done()
            in_thread((engine.sink, LAST))
            assert await reading == [last, LAST]

    asyncio.run(main())


def test_leaving_early_cancels_the_generation() -> None:
    async def main() -> ManualEngine:
        bridge, engine = EventBridge(asyncio.get_running_loop()), ManualEngine()
        with pytest.raises(ZeroDivisionError):
            async with bridge.generation(engine, request(), whole=False):
                raise ZeroDivisionError
        return engine

    assert asyncio.run(main()).handle.cancelled.is_set()


def test_long_prompts_are_tokenized_aside_and_cancelled_even_then() -> None:
    async def main() -> None:
        bridge, engine = EventBridge(asyncio.get_running_loop()), ManualEngine()
        engine.may_submit.clear()

        async def generate() -> None:
            text = "x" * LONG_PROMPT
            async with bridge.generation(engine, request(text), whole=False) as (_, stream):
                await stream.batch()

        task = asyncio.create_task(generate())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine.handle.cancelled.is_set()
        engine.may_submit.set()
        assert await asyncio.to_thread(engine.handle.cancelled.wait, 5)
        assert engine.submitting_thread is not threading.main_thread()

    asyncio.run(main())


def test_a_closed_loop_loses_events_silently() -> None:
    loop = asyncio.new_event_loop()
    bridge, engine = EventBridge(loop), ManualEngine()

    async def submit() -> None:
        await bridge.generation(engine, request(), whole=False).__aenter__()

    loop.run_until_complete(submit())
    loop.close()
    engine.sink(LAST)
