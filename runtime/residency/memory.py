"""The two byte budgets: resident groups on the device, compressed groups in host memory.

Nothing here locks: every method is called with the pool's lock held.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from tersor.models.contracts import GroupWeights
from tersor.runtime.residency.source import EncodedWeights
from tersor.runtime.residency.state import GroupSlot, GroupState, ModelState


def report(model: ModelState) -> None:
    """Tells the observer what the model holds now."""
    total = len(model.slots)
    model.observer.holds("device", model.device_bytes)
    model.observer.holds("host", model.host_bytes)
    model.observer.groups(resident=total - model.absent, total=total)


class HostCache:
    """Compressed groups in host memory, least recently used first to leave."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used = 0
        self._slots: OrderedDict[GroupSlot, int] = OrderedDict()

    def keep(self, slot: GroupSlot, encoded: EncodedWeights) -> None:
        """Keeps `encoded` if the budget can hold it, in place of what was used longest ago."""
        count = encoded.stored_bytes
        if slot in self._slots:
            self._slots.move_to_end(slot)
            return
        if count > self.budget_bytes:
            return
        while self.used + count > self.budget_bytes:
            oldest = next(iter(self._slots))
            self.drop(oldest)
            oldest.model.observer.evicted("host")
            report(oldest.model)
        slot.encoded = encoded
        self._slots[slot] = count
        self.used += count
        slot.model.host_bytes += count

    def touch(self, slot: GroupSlot) -> None:
        """The group left the device: its compressed bytes are now worth most."""
        if slot in self._slots:
            self._slots.move_to_end(slot)

    def drop(self, slot: GroupSlot) -> None:
        """Lets go of the compressed bytes, if there are any."""
        count = self._slots.pop(slot, None)
        if count is None:
            return
        slot.encoded = None
        self.used -= count
        slot.model.host_bytes -= count
        if slot.state is GroupState.HOST:
            slot.move(GroupState.DISK)


class DeviceMemory:
    """Device bytes of resident groups and of those being loaded, never above the budget."""

    def __init__(self, budget_bytes: int | None, host: HostCache) -> None:
        self.budget_bytes = budget_bytes
        self.used = 0
        self._host = host

    def reserve(self, slot: GroupSlot, models: Collection[ModelState], *, ahead: bool) -> bool:
        """Takes `slot.need` bytes for a load, evicting if that makes it fit; False if it does not.

        A load `ahead` of its use is polite: it takes no group that is needed sooner, and none that
        another load brought ahead and that nobody has used yet.
        """
        if self.budget_bytes is not None:
            missing = self.used + slot.need - self.budget_bytes
            if not self._make_room(missing, slot, models, ahead=ahead):
                return False
        slot.reserved = slot.need
        self.used += slot.need
        return True

    def settle(
        self, slot: GroupSlot, weights: GroupWeights, models: Collection[ModelState], *, ahead: bool
    ) -> bool:
        """Makes a loaded group resident with its true size; False, and released, if too big."""
        size = sum(layout.resident_bytes for layout in weights.values())
        self.used += size - slot.reserved
        slot.need = slot.reserved = size
        if self.budget_bytes is not None and not self._make_room(
            self.used - self.budget_bytes, slot, models, ahead=ahead
        ):
            self.release(slot)
            return False
        slot.move(GroupState.DEVICE)
        slot.weights = weights
        slot.prefetched = ahead
        slot.model.absent -= 1
        slot.model.device_bytes += size
        return True

    def release(self, slot: GroupSlot) -> None:
        """Gives a reservation back and leaves the group where its bytes are."""
        self.used -= slot.reserved
        slot.reserved = 0
        slot.move(GroupState.DISK if slot.encoded is None else GroupState.HOST)

    def evict(self, slot: GroupSlot) -> None:
        """Drops a resident group that nobody holds."""
        assert not slot.holders, f"{slot.name} is in use"
        slot.weights = None
        slot.model.absent += 1
        slot.model.device_bytes -= slot.reserved
        self.release(slot)
        self._host.touch(slot)

    def _make_room(
        self, missing: int, slot: GroupSlot, models: Collection[ModelState], *, ahead: bool
    ) -> bool:
        """Frees at least `missing` bytes, or nothing at all and False."""
        if missing <= 0:
            return True
        chosen = []
        for victim in self._victims(slot, models, ahead=ahead):
            if missing <= 0:
                break
            chosen.append(victim)
            missing -= victim.reserved
        if missing > 0:
            return False
        for victim in chosen:
            self.evict(victim)
            victim.model.observer.evicted("device")
            report(victim.model)
        return True

    @staticmethod
    def _victims(
        slot: GroupSlot, models: Collection[ModelState], *, ahead: bool
    ) -> list[GroupSlot]:
        """What may leave for `slot`, best first."""
        own = slot.model
        victims = [
            other
            for model in models
            for other in model.slots
            if other.weights is not None and not other.holders
        ]
        if ahead:
            due = own.distance(slot)
            victims = [
                other
                for other in victims
                if not other.prefetched and (other.model is not own or own.distance(other) > due)
            ]
        victims.sort(key=lambda other: (other.model.last_use, -other.model.distance(other)))
        return victims
