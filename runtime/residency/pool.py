"""Residency: which groups are on the device, and the loads that bring them there.

One lock guards all state; reading, decoding and packing run outside it. A group is loaded by the
first thread that needs it (others wait for the same load), while one background thread loads the
groups that follow in execution order. Under a budget, groups that nobody holds make room: those of
the model that ran least recently first, and within a model the group whose next use is furthest
away (its groups run in a circle, where plain LRU would always drop the very group needed next).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from threading import get_ident

import torch

from tersor.bundle.phases import PhaseTimes
from tersor.models.contracts import GroupWeights
from tersor.runtime.errors import ConfigError, OutOfMemoryError, ServingError, ShuttingDownError
from tersor.runtime.failures import Failure, load_failure
from tersor.runtime.residency.memory import DeviceMemory, HostCache, report
from tersor.runtime.residency.prefetch import Prefetcher
from tersor.runtime.residency.source import EncodedWeights, GroupSource
from tersor.runtime.residency.state import GroupSlot, GroupState, ModelState, WeightObserver
from tersor.runtime.residency.weights import ModelWeights

_log = logging.getLogger(__name__)


class Residency:
    """Owns the weights of all models on one device. Thread-safe; `close` ends its loader thread.

    Args:
        device: where weights become resident.
        budget_bytes: device memory for weights over all models; None: no limit.
        host_budget_bytes: host memory for compressed groups, so that one that left the device
            returns without the disk; 0: none are kept.
        prefetch_groups: how many groups a load runs ahead of the computation; 0: none.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        budget_bytes: int | None = None,
        host_budget_bytes: int = 0,
        prefetch_groups: int = 2,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device = device
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)  # a load ended, or memory came free
        self._prefetch_groups = prefetch_groups
        self._clock = clock
        self._models: dict[str, ModelState] = {}
        self._host = HostCache(host_budget_bytes)
        self._memory = DeviceMemory(budget_bytes, self._host)
        self._ticks = 0
        self._starved: set[int] = set()  # threads asleep until memory comes free
        self._yielding: set[int] = set()  # of those, who is to give up to end a deadlock
        self._closed = False
        self._prefetcher = Prefetcher(self.lock, self._load_ahead)

    def add(self, name: str, source: GroupSource, observer: WeightObserver) -> ModelWeights:
        """Takes charge of a model's weights; nothing is read yet. Raises ConfigError if taken."""
        model = ModelState(name=name, source=source, observer=observer)
        model.slots = [GroupSlot(self, model, i, group) for i, group in enumerate(source.groups)]
        model.absent = len(model.slots)
        with self.lock:
            if self._closed:
                raise ShuttingDownError("no model can be added: the server is shutting down")
            if name in self._models:
                raise ConfigError(f"model name: got {name!r}, expected one that is not taken")
            self._models[name] = model
            report(model)
        observer.holds("disk", sum(source.stored_bytes(group) for group in source.groups))
        return ModelWeights(self, model)

    def remove(self, name: str) -> None:
        """Cancels the model's loads and drops its groups; those in use go when released."""
        with self.lock:
            model = self._models.pop(name, None)
            if model is not None:
                self._close_model(model)

    def close(self) -> None:
        """Removes every model and ends the loader thread."""
        with self.lock:
            self._closed = True
            for model in self._models.values():
                self._close_model(model)
            self._models.clear()
        self._prefetcher.close()

    @property
    def budget_bytes(self) -> int | None:
        """Device memory for weights over all models; None: no limit."""
        return self._memory.budget_bytes

    @property
    def used_bytes(self) -> int:
        """Device bytes of resident groups and of those being loaded."""
        return self._memory.used

    @property
    def host_bytes(self) -> int:
        """Compressed bytes kept in host memory."""
        return self._host.used

    def has_room(self, slot: GroupSlot) -> bool:
        """Whether the group is on the device, or could be without another one leaving."""
        with self.lock:
            budget = self._memory.budget_bytes
            return slot.reserved > 0 or budget is None or self._memory.used + slot.need <= budget

    # The hot path: `GroupSlot.__enter__` and `__exit__` of a resident group.

    def pin(self, slot: GroupSlot) -> None:
        """Adds a pin of this thread to a resident group. The lock is held."""
        slot.holders.append(get_ident())
        slot.prefetched = False
        model = slot.model
        model.position = slot.index
        self._ticks += 1
        model.last_use = self._ticks
        if model.absent:
            self._ask_ahead(slot)

    def unpin(self, slot: GroupSlot) -> None:
        """Takes one pin of this thread away."""
        with self.lock:
            try:
                slot.holders.remove(get_ident())
            except ValueError:
                slot.holders.pop()  # entered on one thread, left on another
            if slot.holders:
                return
            if slot.model.closed:
                self._memory.evict(slot)
                report(slot.model)
            if self._starved:
                self._wake()

    # Bringing a group to the device.

    def bring(self, slot: GroupSlot) -> GroupWeights:
        """Pins a group that was not resident a moment ago, loading it or waiting for its load."""
        start = self._clock()
        try:
            weights = None
            while weights is None:
                with self.lock:
                    weights = self._pin_or_claim(slot)
                if weights is None:
                    weights = self._load(slot, ahead=False)
            return weights
        finally:
            waited = self._clock() - start
            slot.model.observer.waited(waited)
            with self.lock:
                self._yielding.discard(get_ident())
                slot.model.waited_seconds += waited

    def _pin_or_claim(self, slot: GroupSlot) -> GroupWeights | None:
        """The pinned weights, or None: this thread is to load them. Waits as long as it takes."""
        while True:
            if slot.model.closed:
                raise ShuttingDownError(f"model {slot.model.name} is being unloaded")
            if slot.weights is not None:
                self.pin(slot)
                return slot.weights
            if slot.state is GroupState.LOADING:
                failures = slot.failures
                self._changed.wait()
                if slot.failures != failures and slot.failure is not None:
                    raise slot.failure.error()
            elif self._memory.reserve(slot, self._models.values(), ahead=False):
                slot.move(GroupState.LOADING)
                slot.model.position = slot.index
                self._ask_ahead(slot)
                return None
            else:
                self._wait_for_memory(slot)

    def _wait_for_memory(self, slot: GroupSlot) -> None:
        """Sleeps until memory came free. Raises OutOfMemoryError if it never can."""
        where = f"model {slot.model.name}: group {slot.name} needs {slot.need} bytes of memory"
        budget = self._memory.budget_bytes
        if budget is not None and slot.need > budget:
            raise OutOfMemoryError(f"{where}, got a budget of {budget} bytes; raise the budget")
        me = get_ident()
        self._starved.add(me)
        try:
            self._break_deadlock(me)
            if me in self._yielding:
                raise OutOfMemoryError(
                    f"{where} beside the groups in use, got a budget of {budget} bytes; "
                    "raise the budget"
                )
            self._changed.wait()
        finally:
            self._starved.discard(me)

    def _break_deadlock(self, me: int) -> None:
        """Chooses a thread to give up if every thread that holds a group waits for memory.

        It must be one that holds a group, or giving up would help nobody.
        """
        slots = [slot for model in self._models.values() for slot in model.slots]
        holders = [holder for slot in slots for holder in slot.holders]
        loading = any(slot.state is GroupState.LOADING for slot in slots)
        if loading or not holders or any(holder not in self._starved for holder in holders):
            return
        self._yielding.add(me if me in holders else holders[0])
        self._wake()
        self._starved.add(me)

    def _load(self, slot: GroupSlot, *, ahead: bool) -> GroupWeights | None:
        """Loads a claimed group; pinned unless `ahead`. None if it turned out too large for now."""
        model = slot.model
        times = PhaseTimes(clock=self._clock)
        start = self._clock()
        try:
            encoded = self._fetch(slot, times)
            weights = encoded.load(self.device, times=times, cancelled=lambda: model.closed)
        except Exception as error:
            failure = load_failure(f"model {model.name}: group {slot.name}", error, _log)
            self._fail(slot, failure)
            raise failure.error() from error
        except BaseException:
            self._fail(slot, None)
            raise
        seconds = self._clock() - start
        fits = self._settle(slot, encoded, weights, ahead=ahead)
        model.observer.loaded("group", seconds, times.seconds)
        return weights if fits else None

    def _fetch(self, slot: GroupSlot, times: PhaseTimes) -> EncodedWeights:
        """The group's compressed bytes, from host memory or from disk."""
        model = slot.model
        if slot.encoded is not None:
            return slot.encoded
        encoded = model.source.fetch(slot.name, times=times, cancelled=lambda: model.closed)
        model.observer.read(encoded.stored_bytes)
        return encoded

    def _settle(
        self, slot: GroupSlot, encoded: EncodedWeights, weights: GroupWeights, *, ahead: bool
    ) -> bool:
        """Ends a load that went well; False if the group is larger than thought and did not fit."""
        with self.lock:
            if slot.model.closed:
                self._memory.release(slot)
                self._wake()
                raise ShuttingDownError(f"model {slot.model.name} is being unloaded")
            self._host.keep(slot, encoded)
            fits = self._memory.settle(slot, weights, self._models.values(), ahead=ahead)
            if fits and not ahead:
                self.pin(slot)
            report(slot.model)
            self._wake()
            return fits

    def _fail(self, slot: GroupSlot, failure: Failure | None) -> None:
        """Ends a load that failed: whoever waits for it fails too, the next acquire tries again."""
        with self.lock:
            slot.failures += 1
            slot.failure = failure
            self._memory.release(slot)
            self._host.drop(slot)  # the next try must not meet the same bytes
            report(slot.model)
            self._wake()
        if not slot.model.closed:
            slot.model.observer.load_failed()

    def _ask_ahead(self, slot: GroupSlot) -> None:
        """Puts the groups that follow `slot` in execution order into the prefetch queue."""
        slots = slot.model.slots
        for step in range(1, min(self._prefetch_groups + 1, len(slots))):
            self._prefetcher.ask(slots[(slot.index + step) % len(slots)])

    def _load_ahead(self, slot: GroupSlot) -> None:
        """One turn of the loader thread. Steps back for threads that wait for memory."""
        with self.lock:
            if slot.model.closed or slot.state not in {GroupState.DISK, GroupState.HOST}:
                return
            if self._starved:
                return
            if not self._memory.reserve(slot, self._models.values(), ahead=True):
                return
            slot.move(GroupState.LOADING)
        try:
            self._load(slot, ahead=True)
        except ServingError as error:
            if not slot.model.closed:
                _log.warning("prefetch failed, the next use tries again: %s", error)

    def _close_model(self, model: ModelState) -> None:
        model.closed = True
        self._prefetcher.forget(model)
        for slot in model.slots:
            if slot.weights is not None and not slot.holders:
                self._memory.evict(slot)
            self._host.drop(slot)
        report(model)
        self._wake()

    def _wake(self) -> None:
        """Lets every waiting thread look again; until it has, it does not count as asleep."""
        self._starved.clear()
        self._changed.notify_all()
