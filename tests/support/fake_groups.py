"""A group source without a file: sizes, gates and failures are the test's choice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

import torch

from tersor.bundle.errors import BundleCancelledError
from tersor.bundle.phases import PhaseTimes
from tersor.kernels.dense import DenseLayout
from tersor.models.contracts import GroupWeights
from tersor.runtime.residency import Residency

MakeResidency = Callable[..., Residency]  # the fixture `make_residency`
WAIT_SECONDS = 20.0  # far beyond what any step takes; only a failing test waits that long


def until(condition: Callable[[], bool]) -> None:
    """Waits for another thread's progress; fails the test if there is none."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "the expected state was never reached"
        time.sleep(0.0005)


class FakeEncoded:
    """Compressed bytes that decode to one dense uint8 tensor named like the group."""

    def __init__(self, source: FakeSource, group: str) -> None:
        self._source = source
        self._group = group
        self.stored_bytes = source.stored_bytes(group)

    def load(
        self, device: torch.device, *, times: PhaseTimes, cancelled: Callable[[], bool]
    ) -> GroupWeights:
        with times.measure("decode"):
            self._source.step(self._group, "decode", cancelled)
        values = torch.full((self._source.sizes[self._group],), 7, dtype=torch.uint8)
        return {self._group: DenseLayout(values)}


class FakeSource:
    """Groups by name and resident size; stored size is half. `estimates` may be wrong."""

    def __init__(
        self, sizes: Mapping[str, int], *, estimates: Mapping[str, int] | None = None
    ) -> None:
        self.sizes = dict(sizes)
        self.estimates = {**self.sizes, **(estimates or {})}
        self.groups = tuple(sizes)
        self.fetched: Counter[str] = Counter()
        self.decoded: Counter[str] = Counter()
        self.gates: dict[str, threading.Event] = {}  # a fetch of that group waits for its gate
        self.failures: dict[tuple[str, str], Exception] = {}  # (group, step) -> raised there

    def estimated_bytes(self, group: str) -> int:
        return self.estimates[group]

    def stored_bytes(self, group: str) -> int:
        return self.sizes[group] // 2

    def fetch(self, group: str, *, times: PhaseTimes, cancelled: Callable[[], bool]) -> FakeEncoded:
        with times.measure("read"):
            self.step(group, "fetch", cancelled)
        return FakeEncoded(self, group)

    def step(self, group: str, step: str, cancelled: Callable[[], bool]) -> None:
        (self.fetched if step == "fetch" else self.decoded)[group] += 1
        gate = self.gates.get(group)
        while gate is not None and step == "fetch" and not gate.wait(0.001):
            if cancelled():
                raise BundleCancelledError("cancelled")
        if (group, step) in self.failures:
            raise self.failures[group, step]


class RecordingObserver:
    """Keeps what a residency reports."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, float, dict[str, float]]] = []
        self.failed = 0
        self.waits: list[float] = []
        self.read_bytes = 0
        self.evictions: Counter[str] = Counter()
        self.held: dict[str, int] = {}
        self.resident = 0
        self.total = 0

    def loaded(self, step: str, seconds: float, phases: Mapping[str, float]) -> None:
        self.loads.append((step, seconds, dict(phases)))

    def load_failed(self) -> None:
        self.failed += 1

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def read(self, stored_bytes: int) -> None:
        self.read_bytes += stored_bytes

    def evicted(self, tier: str) -> None:
        self.evictions[tier] += 1

    def holds(self, tier: str, count: int) -> None:
        self.held[tier] = count

    def groups(self, *, resident: int, total: int) -> None:
        self.resident = resident
        self.total = total
