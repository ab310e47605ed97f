"""The state of one group and of one model in a `Residency`, guarded by the pool's lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

from tersor.models.contracts import GroupWeights

if TYPE_CHECKING:
    from tersor.runtime.failures import Failure
    from tersor.runtime.residency.pool import Residency
    from tersor.runtime.residency.source import EncodedWeights, GroupSource


class GroupState(Enum):
    """Where a group is. `HOST` and `DISK` differ by compressed bytes kept in host memory."""

    DISK = "disk"
    HOST = "host"
    LOADING = "loading"
    DEVICE = "device"


_MOVES: Final = {
    GroupState.DISK: {GroupState.LOADING},
    GroupState.HOST: {GroupState.LOADING, GroupState.DISK},
    GroupState.LOADING: {GroupState.DEVICE, GroupState.HOST, GroupState.DISK},
    GroupState.DEVICE: {GroupState.HOST, GroupState.DISK},
}


class WeightObserver(Protocol):
    """What a `Residency` reports of one model. Called outside any hot path, from any thread."""

    def loaded(self, step: str, seconds: float, phases: Mapping[str, float]) -> None: ...
    def load_failed(self) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def read(self, stored_bytes: int) -> None: ...
    def evicted(self, tier: str) -> None: ...
    def holds(self, tier: str, count: int) -> None: ...
    def groups(self, *, resident: int, total: int) -> None: ...


@dataclass(slots=True, kw_only=True)
class ModelState:
    """One model's groups in execution order, and how far its computation is."""

    name: str
    source: GroupSource
    observer: WeightObserver
    slots: list[GroupSlot] = field(default_factory=list)
    position: int = 0  # index of the group acquired last
    last_use: int = 0  # tick of that acquire
    absent: int = 0  # groups that are not on the device
    device_bytes: int = 0
    host_bytes: int = 0
    waited_seconds: float = 0.0
    closed: bool = False

    def distance(self, slot: GroupSlot) -> int:
        """How many groups the computation runs before it needs `slot`; a model runs in a circle."""
        return (slot.index - self.position - 1) % len(self.slots)


class GroupSlot:
    """One group; entering it pins the group to the device, leaving it takes one pin away.

    It is its own (re-usable, re-entrant) context manager, so that the acquire of a resident group,
    which happens for every layer of every decode step, allocates nothing.
    """

    __slots__ = (
        "encoded",
        "failure",
        "failures",
        "holders",
        "index",
        "model",
        "name",
        "need",
        "pool",
        "prefetched",
        "reserved",
        "state",
        "wanted",
        "weights",
    )

    def __init__(self, pool: Residency, model: ModelState, index: int, name: str) -> None:
        self.pool = pool
        self.model = model
        self.index = index
        self.name = name
        self.state = GroupState.DISK
        self.weights: GroupWeights | None = None  # set exactly in state DEVICE
        self.encoded: EncodedWeights | None = None  # compressed bytes kept in host memory
        self.holders: list[int] = []  # thread ids, one entry a pin
        self.need = model.source.estimated_bytes(name)  # exact once the group was loaded
        self.reserved = 0  # bytes of the budget this group takes now
        self.prefetched = False  # loaded ahead and not used yet
        self.wanted = False  # in the prefetch queue
        self.failures = 0  # loads that failed so far
        self.failure: Failure | None = None  # why the last one did

    def move(self, state: GroupState) -> None:
        """The one place where the state changes."""
        assert state in _MOVES[self.state], f"{self.name}: {self.state} -> {state}"
        self.state = state

    def __enter__(self) -> GroupWeights:
        pool = self.pool
        with pool.lock:
            weights = self.weights
            if weights is not None:
                pool.pin(self)
                return weights
        return pool.bring(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.unpin(self)
