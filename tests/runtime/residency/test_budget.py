from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from fake_groups import FakeSource, MakeResidency, RecordingObserver, until

from tersor.bundle.errors import BundleCorruptError
from tersor.runtime.errors import ModelLoadError, OutOfMemoryError, ServingError
from tersor.runtime.residency import ModelWeights, Residency

GROUPS = {f"g{i}": 100 for i in range(6)}


def touch(weights: ModelWeights, *groups: str) -> None:
    for group in groups:
        with weights.acquire(group):
            pass


def test_the_least_recently_used_model_makes_room(make_residency: MakeResidency) -> None:
    residency = make_residency(budget=400)
    sources = {name: FakeSource({"g0": 100, "g1": 100}) for name in "abc"}
    observers = {name: RecordingObserver() for name in "abc"}
    models = {name: residency.add(name, sources[name], observers[name]) for name in "abc"}
    for name in ("a", "b", "a"):
        touch(models[name], "g0", "g1")
    touch(models["c"], "g0", "g1")
    assert [models[name].resident_groups for name in "abc"] == [2, 0, 2]
    assert residency.used_bytes == 400
    assert observers["b"].evictions == {"device": 2}
    assert observers["b"].held["device"] == 0
    assert observers["b"].resident == 0


def test_within_a_model_the_group_needed_last_leaves_first(make_residency: MakeResidency) -> None:
    # 4 of 6 groups fit and the groups run in a circle: dropping the least recently used one would
    # load all 6 in every round; dropping the one whose next use is furthest loads 6 - 4 + 1 = 3.
    source = FakeSource(GROUPS)
    weights = make_residency(budget=400).add("m", source, RecordingObserver())
    touch(weights, *GROUPS)
    rounds = []
    for _ in range(4):
        before = source.fetched.total()
        touch(weights, *GROUPS)
        rounds.append(source.fetched.total() - before)
    assert sum(rounds) <= 4 * 3


def test_prefetch_takes_nothing_that_is_needed_sooner(make_residency: MakeResidency) -> None:
    source, observer = FakeSource(GROUPS), RecordingObserver()
    residency = make_residency(budget=300, prefetch=4)
    weights = residency.add("m", source, observer)
    with weights.acquire("g0"):
        until(lambda: weights.resident_groups == 3)
        time.sleep(0.01)  # g3 and g4 were asked for as well; g1 and g2 must stay
    assert observer.evictions.total() == 0
    touch(weights, "g1", "g2")
    assert source.fetched["g1"] == source.fetched["g2"] == 1


def test_a_group_in_use_is_never_evicted(make_residency: MakeResidency) -> None:
    residency = make_residency(budget=200)
    weights = residency.add("m", FakeSource(GROUPS), RecordingObserver())
    with weights.acquire("g0") as held:
        touch(weights, "g1", "g2", "g3")
        assert weights.acquire("g0").weights is held
    touch(weights, "g4", "g5")
    assert residency.used_bytes == 200


def test_a_load_waits_for_memory_in_use_elsewhere(make_residency: MakeResidency) -> None:
    residency = make_residency(budget=100)
    weights = residency.add("m", FakeSource(GROUPS), RecordingObserver())
    acquired, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with weights.acquire("g0"):
            acquired.set()
            assert leave.wait(20)

    with ThreadPoolExecutor(2) as threads:
        holder = threads.submit(hold)
        assert acquired.wait(20)
        waiter = threads.submit(touch, weights, "g1")
        time.sleep(0.02)
        assert not waiter.done()
        leave.set()
        waiter.result(timeout=20)
        holder.result(timeout=20)


def test_a_group_beyond_the_budget_is_refused(make_residency: MakeResidency) -> None:
    source = FakeSource({"small": 50, "large": 101})
    weights = make_residency(budget=100).add("m", source, RecordingObserver())
    with pytest.raises(OutOfMemoryError, match=r"large needs 101 bytes .* budget of 100 bytes"):
        touch(weights, "large")
    assert source.fetched.total() == 0
    touch(weights, "small")


def test_waiting_for_oneself_is_refused(make_residency: MakeResidency) -> None:
    residency = make_residency(budget=150)
    weights = residency.add("m", FakeSource(GROUPS), RecordingObserver())
    with weights.acquire("g0"), pytest.raises(OutOfMemoryError, match="beside the groups in use"):
        touch(weights, "g1")
    touch(weights, "g1")


def test_two_threads_that_wait_for_each_other_are_told_apart(
    make_residency: MakeResidency,
) -> None:
    residency = make_residency(budget=200)
    weights = residency.add("m", FakeSource(GROUPS), RecordingObserver())
    both = threading.Barrier(2, timeout=20)

    def nested(outer: str, inner: str) -> bool:
        with weights.acquire(outer):
            both.wait()
            try:
                touch(weights, inner)
            except OutOfMemoryError:
                return False
            return True

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(nested, "g0", "g2"), threads.submit(nested, "g1", "g3")]
        assert sorted(future.result(timeout=20) for future in futures) == [False, True]


def test_who_ends_a_deadlock_is_one_that_can(make_residency: MakeResidency) -> None:
    # A third thread waits too; it holds nothing, so its failure would help nobody.
    residency = make_residency(budget=200)
    weights = residency.add("m", FakeSource(GROUPS), RecordingObserver())
    both = threading.Barrier(2, timeout=20)
    outcomes: list[str] = []

    def nested(outer: str, inner: str) -> None:
        with weights.acquire(outer):
            both.wait()
            until(lambda: len(residency._starved) > 0)  # the bystander is asleep
            try:
                touch(weights, inner)
            except OutOfMemoryError:
                outcomes.append("gave up")
            else:
                outcomes.append("went on")

    def bystander() -> None:
        until(lambda: residency.used_bytes == 200)
        touch(weights, "g4")
        outcomes.append("bystander went on")

    with ThreadPoolExecutor(3) as threads:
        futures = [
            threads.submit(nested, "g0", "g2"),
            threads.submit(nested, "g1", "g3"),
            threads.submit(bystander),
        ]
        for future in futures:
            future.result(timeout=20)
    assert sorted(outcomes) == ["bystander went on", "gave up", "went on"]


def test_a_size_that_was_underestimated_is_corrected(make_residency: MakeResidency) -> None:
    source = FakeSource({"a": 100, "b": 100, "huge": 500}, estimates={"a": 10, "b": 10, "huge": 10})
    residency = make_residency(budget=150)
    weights = residency.add("m", source, RecordingObserver())
    touch(weights, "a", "b")
    assert residency.used_bytes == 100  # b was found to be larger and took a's place
    with pytest.raises(OutOfMemoryError, match="huge needs 500 bytes"):
        touch(weights, "huge")
    assert residency.used_bytes <= 150
    with weights.acquire("a"), pytest.raises(OutOfMemoryError, match="beside"):
        touch(weights, "b")


def test_evicted_groups_return_from_host_memory(make_residency: MakeResidency) -> None:
    source, observer = FakeSource(GROUPS), RecordingObserver()
    residency = make_residency(budget=100, host=100)  # two compressed groups
    weights = residency.add("m", source, observer)
    touch(weights, "g0", "g1", "g0", "g1")
    assert source.fetched == {"g0": 1, "g1": 1}
    assert source.decoded == {"g0": 2, "g1": 2}
    assert residency.host_bytes == weights.host_bytes == observer.held["host"] == 100
    touch(weights, "g2")
    assert residency.host_bytes == 100
    assert observer.evictions["host"] == 1


def test_damaged_bytes_in_host_memory_are_read_again(make_residency: MakeResidency) -> None:
    source = FakeSource(GROUPS)
    residency = make_residency(budget=100, host=1000)
    weights = residency.add("m", source, RecordingObserver())
    touch(weights, "g0", "g1")
    source.failures["g0", "decode"] = BundleCorruptError("damaged")
    with pytest.raises(ModelLoadError):
        touch(weights, "g0")
    source.failures.clear()
    touch(weights, "g0")
    assert source.fetched["g0"] == 2


def test_preload_stops_where_the_budget_ends(make_residency: MakeResidency) -> None:
    source = FakeSource(GROUPS)
    weights = make_residency(budget=350).add("m", source, RecordingObserver())
    assert not weights.preload()
    assert source.fetched == {"g0": 1, "g1": 1, "g2": 1}
    whole = make_residency().add("m", FakeSource(GROUPS), RecordingObserver())
    assert whole.preload()
    assert whole.resident_groups == 6


def _check_ledger(residency: Residency, budget: int, host: int) -> None:
    with residency.lock:
        slots = [slot for model in residency._models.values() for slot in model.slots]
        assert residency.used_bytes == sum(slot.reserved for slot in slots) <= budget
        assert residency.host_bytes <= host
        kept = [slot.encoded.stored_bytes for slot in slots if slot.encoded is not None]
        assert residency.host_bytes == sum(kept)
        for slot in slots:
            assert (slot.weights is not None) == (slot.state.value == "device")
            assert not slot.holders or slot.weights is not None


@pytest.mark.parametrize("seed", range(6))
def test_stress_many_threads_on_a_tiny_budget(make_residency: MakeResidency, seed: int) -> None:
    budget, host = 700, 300
    residency = make_residency(budget=budget, host=host, prefetch=2)
    rng = random.Random(seed)
    models = []
    for name in ("a", "b", "c"):
        sizes = {f"g{i}": rng.randrange(40, 200) for i in range(7)}
        estimates = {group: max(1, size - rng.randrange(60)) for group, size in sizes.items()}
        source = FakeSource(sizes, estimates=estimates)
        models.append((residency.add(name, source, RecordingObserver()), source))
    models[2][1].failures["g3", "decode"] = BundleCorruptError("damaged")
    outcomes: list[str] = []

    def run(number: int) -> None:
        mine = random.Random(seed * 100 + number)
        for _ in range(25):
            weights, source = models[mine.randrange(3)]
            for group in weights.groups:
                try:
                    with weights.acquire(group) as outer:
                        assert outer[group].resident_bytes == source.sizes[group]
                        if mine.random() < 0.2:
                            with weights.acquire(weights.groups[0]):
                                outcomes.append("nested")
                        outcomes.append("used")
                except ServingError as error:
                    outcomes.append(type(error).__name__)
                if mine.random() < 0.05:
                    _check_ledger(residency, budget, host)

    threads = ThreadPoolExecutor(10)
    futures = [threads.submit(run, n) for n in range(10)]
    done, stuck = wait(futures, timeout=60)
    threads.shutdown(wait=not stuck)
    assert not stuck, "deadlock"
    for future in done:
        future.result()
    until(lambda: not any(s.state.value == "loading" for w, _ in models for s in w._slots.values()))
    _check_ledger(residency, budget, host)
    assert not any(slot.holders for weights, _ in models for slot in weights._slots.values())
    assert outcomes.count("used") > 1500
    assert "nested" in outcomes
    assert "ModelLoadError" in outcomes
    assert set(outcomes) <= {"used", "nested", "ModelLoadError", "OutOfMemoryError"}
