from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

import pytest
import torch
from fake_graphs import RecordingGraphObserver, RowRunner, row_inputs, row_program
from fake_groups import until

from tersor.bundle.program import GraphProgram
from tersor.runtime.config import EngineConfig
from tersor.runtime.errors import (
    CancelledRequestError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    ModelLoadError,
    OverloadedError,
    ShuttingDownError,
)
from tersor.runtime.graph import GraphEngine

Outputs = dict[str, torch.Tensor]


class Bench:
    """An engine over the row program, with its runner and its observer."""

    def __init__(self) -> None:
        self.runner = RowRunner()
        self.observer = RecordingGraphObserver()
        self.engines: list[GraphEngine] = []

    def engine(
        self,
        *,
        program: GraphProgram | None = None,
        delay: float = 0.0,
        queue: int = 64,
        batch: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> GraphEngine:
        engine = GraphEngine(
            name="rows",
            program=program or row_program(),
            model=self.runner,
            config=EngineConfig(
                max_batch_size=batch, max_queue_size=queue, batch_delay_seconds=delay
            ),
            observer=self.observer,
            device=torch.device("cpu"),
            clock=clock,
        )
        self.engines.append(engine)
        return engine

    def blocked(self, engine: GraphEngine) -> Future[Outputs]:
        """A request that occupies the engine until the gate opens."""
        self.runner.gate.clear()
        begun = len(self.runner.batches)
        future = engine.submit(row_inputs(0.0))
        until(lambda: len(self.runner.batches) > begun)
        return future


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.runner.gate.set()
    for engine in bench.engines:
        engine.close()


def test_requests_that_wait_are_computed_together_and_split_again(bench: Bench) -> None:
    engine = bench.engine()
    first = bench.blocked(engine)
    futures = [engine.submit(row_inputs(float(i), rows=i, n=i)) for i in (1, 2, 3)]
    assert (engine.waiting, engine.running) == (3, 1)
    bench.runner.gate.set()
    for i, future in zip((1, 2, 3), futures, strict=True):
        assert torch.equal(future.result(20)["y"], torch.full((i, 3), 3.0 * i))
    first.result(20)
    assert bench.runner.batches == [1, 6]
    assert bench.observer.runs == [(1, 1), (6, 3)]
    storages = {future.result()["y"].untyped_storage().data_ptr() for future in futures}
    assert len(storages) == 1  # views of one result
    until(lambda: bench.observer.depth == (0, 0))
    assert len(bench.observer.waits) == 4


def test_other_shapes_are_not_mixed_and_rows_are_bounded(bench: Bench) -> None:
    engine = bench.engine(batch=4)
    bench.blocked(engine)
    shapes = [(2, 3), (1, 5), (2, 3), (1, 3), (1, 5)]
    futures = [engine.submit(row_inputs(1.0, rows=r, columns=c)) for r, c in shapes]
    bench.runner.gate.set()
    for (rows, columns), future in zip(shapes, futures, strict=True):
        assert future.result(20)["y"].shape == (rows, columns)
    assert bench.runner.batches == [1, 4, 2, 1]


def test_a_static_batch_is_run_one_by_one(bench: Bench) -> None:
    engine = bench.engine(program=row_program(batched=False, max_batch_size=1), delay=5.0)
    bench.blocked(engine)
    futures = [engine.submit(row_inputs(float(i))) for i in range(3)]
    bench.runner.gate.set()
    assert [float(future.result(20)["y"][0, 0]) for future in futures] == [0.0, 2.0, 4.0]
    assert bench.runner.batches == [1, 1, 1, 1]


def test_a_request_larger_than_a_batch_runs_alone(bench: Bench) -> None:
    engine = bench.engine(batch=2)
    assert engine.submit(row_inputs(1.0, rows=5)).result(20)["y"].shape == (5, 3)


def test_one_caller_alone_is_never_delayed(bench: Bench) -> None:
    engine = bench.engine(delay=5.0)
    start = time.monotonic()
    for _ in range(5):
        engine.submit(row_inputs(1.0)).result(20)
    assert time.monotonic() - start < 2.0


def test_callers_that_come_back_together_are_awaited(bench: Bench) -> None:
    engine = bench.engine(delay=5.0)
    start = time.monotonic()
    first = bench.blocked(engine)
    futures = [engine.submit(row_inputs(1.0)) for _ in range(2)]
    bench.runner.gate.set()
    first.result(20)
    for _ in range(3):  # three callers are around: every batch waits until all three are there
        futures.append(engine.submit(row_inputs(1.0)))
        for future in futures:
            future.result(20)
        futures.clear()
        for _ in range(2):
            time.sleep(0.005)
            futures.append(engine.submit(row_inputs(1.0)))
    futures.append(engine.submit(row_inputs(1.0)))
    wait(futures, timeout=20)
    assert time.monotonic() - start < 4.0
    assert bench.runner.batches == [1, 3, 3, 3, 3]


def test_waiting_for_company_ends(bench: Bench) -> None:
    engine = bench.engine(delay=0.3)
    bench.blocked(engine)
    futures = [engine.submit(row_inputs(1.0)) for _ in range(2)]
    bench.runner.gate.set()
    wait(futures, timeout=20)  # the third caller, whose request came first, is not coming back
    start = time.monotonic()
    engine.submit(row_inputs(1.0)).result(20)  # of the two one went away
    assert time.monotonic() - start >= 0.25
    start = time.monotonic()
    engine.submit(row_inputs(1.0)).result(20)  # and is not expected any more
    assert time.monotonic() - start < 0.25


def test_many_threads_get_their_own_rows(bench: Bench) -> None:
    engine = bench.engine(delay=0.001)

    def ask(i: int) -> bool:
        columns = 2 + i % 3
        y = engine.submit(row_inputs(float(i), rows=1 + i % 2, columns=columns, n=i)).result(20)
        return bool((y["y"] == 3.0 * i).all()) and y["y"].shape == (1 + i % 2, columns)

    numbers = [i for i in range(200) if i != 13]  # n = 13 is the runner's defect
    with ThreadPoolExecutor(12) as threads:
        assert all(threads.map(ask, numbers))
    assert len(bench.runner.batches) < len(numbers)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.zeros(1, 3)}, "got inputs x, expected n, x"),
        ({}, "got inputs none, expected n, x"),
        ({**row_inputs(1.0), "z": torch.zeros(1)}, "got inputs n, x, z, expected n, x"),
        (
            {"x": torch.zeros(1, 3, dtype=torch.float64), "n": torch.zeros(1, dtype=torch.int64)},
            "input 'x': got dtype f64, expected f32",
        ),
        (
            {"x": torch.zeros(1, 3, dtype=torch.complex64), "n": torch.zeros(1).long()},
            "input 'x': got dtype torch.complex64, expected f32",
        ),
        (
            {"x": torch.zeros(3), "n": torch.zeros(3, dtype=torch.int64)},
            "input 'x': got shape [3], expected [-1, -1], where -1 is any size from 1",
        ),
        (
            {"x": torch.zeros(1, 0), "n": torch.zeros(1, dtype=torch.int64)},
            "input 'x': got shape [1, 0], expected [-1, -1]",
        ),
        (
            {"x": torch.zeros(2, 3), "n": torch.zeros(1, dtype=torch.int64)},
            "got batches of different size (x: 2, n: 1)",
        ),
        (row_inputs(1.0, rows=9), "got a batch of 9, expected at most 8"),
    ],
)
def test_wrong_inputs_are_refused_at_once(bench: Bench, inputs: Outputs, message: str) -> None:
    engine = bench.engine()
    with pytest.raises(InvalidRequestError) as caught:
        engine.submit(inputs)
    assert message in str(caught.value)
    assert bench.observer.failures == ["invalid_request"]
    assert engine.submit(row_inputs(1.0)).result(20)["y"].shape == (1, 3)


def test_one_bad_request_does_not_fail_its_neighbours(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    engine = bench.engine()
    bench.blocked(engine)
    futures = [engine.submit(row_inputs(1.0, n=n)) for n in (0, -1, 13, 2)]
    bench.runner.gate.set()
    assert futures[0].result(20)["y"][0, 0] == 2
    assert futures[3].result(20)["y"][0, 0] == 4
    with pytest.raises(InvalidRequestError, match="model rows: an index lies outside the table"):
        futures[1].result(20)
    with pytest.raises(
        InternalError, match=r"model rows: a run failed with RuntimeError"
    ) as caught:
        futures[2].result(20)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert str(caught.value).split(":")[0].removeprefix("Internal error ") in caplog.text
    assert bench.observer.failures == ["invalid_request", "internal"]


def test_weights_that_cannot_be_loaded_fail_the_batch_once(bench: Bench) -> None:
    engine = bench.engine()
    first = bench.blocked(engine)
    bench.runner.failure = ModelLoadError("model rows: group g could not be loaded: damaged")
    futures = [engine.submit(row_inputs(1.0)) for _ in range(3)]
    bench.runner.gate.set()
    errors = [future.exception(20) for future in [first, *futures]]
    assert all(isinstance(error, ModelLoadError) for error in errors)
    assert len({id(error) for error in errors}) == 4
    assert bench.runner.batches == [1, 3]
    bench.runner.failure = None
    engine.submit(row_inputs(1.0)).result(20)


def test_a_caller_who_comes_back_at_once_is_no_company_for_itself(bench: Bench) -> None:
    engine = bench.engine(delay=30.0)
    answers: list[Future[Outputs]] = []
    done = threading.Event()

    def again(_: Future[Outputs]) -> None:
        if len(answers) == 5:
            done.set()
            return
        answers.append(engine.submit(row_inputs(1.0)))
        answers[-1].add_done_callback(again)

    engine.submit(row_inputs(1.0)).add_done_callback(again)
    assert done.wait(20)  # nobody waited out the batch delay
    assert bench.runner.batches == [1] * 6


def test_a_full_queue_says_when_to_come_back(bench: Bench) -> None:
    engine = bench.engine(queue=2)
    bench.blocked(engine)
    waiting = [engine.submit(row_inputs(1.0)) for _ in range(2)]
    with pytest.raises(OverloadedError, match="2 requests are waiting") as caught:
        engine.submit(row_inputs(1.0))
    assert 0 < caught.value.retry_after_seconds <= 30
    assert bench.observer.failures == ["overloaded"]
    bench.runner.gate.set()
    wait(waiting, timeout=20)
    engine.submit(row_inputs(1.0)).result(20)


def test_deadlines_end_a_wait_in_the_queue(bench: Bench) -> None:
    engine = bench.engine()
    with pytest.raises(DeadlineError):
        engine.submit(row_inputs(1.0), deadline=time.monotonic() - 1)
    first = bench.blocked(engine)
    late = engine.submit(row_inputs(1.0), deadline=time.monotonic() + 0.01)
    fine = engine.submit(row_inputs(1.0), deadline=time.monotonic() + 60)
    time.sleep(0.02)
    bench.runner.gate.set()
    with pytest.raises(DeadlineError, match="in the queue"):
        late.result(20)
    fine.result(20)
    first.result(20)
    assert bench.runner.batches == [1, 1]
    assert bench.observer.failures == ["deadline", "deadline"]


def test_a_run_ends_once_its_caller_went_away(bench: Bench) -> None:
    engine = bench.engine()
    gone = bench.blocked(engine)
    waiting = engine.submit(row_inputs(1.0))
    assert not gone.cancel()  # it runs already
    bench.runner.gate.set()
    with pytest.raises(CancelledRequestError):
        gone.result(20)
    waiting.result(20)
    assert bench.observer.failures == ["cancelled"]


def test_a_run_ends_once_its_deadline_passed(bench: Bench) -> None:
    now = [0.0]
    engine = bench.engine(clock=lambda: now[0])
    bench.runner.gate.clear()
    late = engine.submit(row_inputs(1.0), deadline=1.0)
    until(lambda: bench.runner.batches == [1])
    now[0] = 2.0
    bench.runner.gate.set()
    with pytest.raises(DeadlineError, match="before the graph had run"):
        late.result(20)
    assert bench.observer.failures == ["deadline"]


def test_a_run_goes_on_for_whoever_still_waits(bench: Bench) -> None:
    engine = bench.engine()
    first = bench.blocked(engine)
    gone, wanted = engine.submit(row_inputs(1.0)), engine.submit(row_inputs(2.0))
    bench.runner.during = lambda rows: gone.cancel() if rows == 2 else None
    bench.runner.gate.set()
    first.result(20)
    torch.testing.assert_close(wanted.result(20)["y"], torch.full((1, 3), 4.0))
    assert bench.runner.batches == [1, 2]


def test_company_never_costs_a_request_its_deadline(bench: Bench) -> None:
    engine = bench.engine(delay=30.0)
    first = bench.blocked(engine)
    second = engine.submit(row_inputs(1.0), deadline=time.monotonic() + 15)
    bench.runner.gate.set()
    first.result(20)
    assert second.result(10)["y"].shape == (1, 3)  # without the first caller's next request


def test_a_cancelled_request_leaves_the_queue(bench: Bench) -> None:
    engine = bench.engine(queue=1)
    bench.blocked(engine)
    future = engine.submit(row_inputs(1.0))
    assert future.cancel()
    assert engine.waiting == 0
    other = engine.submit(row_inputs(1.0))
    bench.runner.gate.set()
    other.result(20)
    with pytest.raises(CancelledError):
        future.result(0)
    assert bench.runner.batches == [1, 1]
    assert bench.observer.failures == ["cancelled"]


def test_close_drains_what_it_can_and_fails_the_rest(bench: Bench) -> None:
    engine = bench.engine()
    first = bench.blocked(engine)
    second = engine.submit(row_inputs(1.0))
    closer = threading.Thread(target=engine.close, args=(20.0,))
    closer.start()
    until(lambda: engine._closing)
    with pytest.raises(ShuttingDownError):
        engine.submit(row_inputs(1.0))
    bench.runner.gate.set()
    closer.join(20)
    first.result(0)
    second.result(0)
    engine.close()


def test_close_without_grace_fails_what_waits(bench: Bench) -> None:
    engine = bench.engine()
    first = bench.blocked(engine)
    second = engine.submit(row_inputs(1.0))
    closer = threading.Thread(target=engine.close)
    closer.start()
    with pytest.raises(ShuttingDownError):
        second.result(20)
    bench.runner.gate.set()
    closer.join(20)
    assert first.result(0)["y"].shape == (1, 3)
    assert bench.observer.depth == (0, 0)
