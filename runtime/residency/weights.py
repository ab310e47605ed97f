"""One model's view of a `Residency`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tersor.models.errors import WeightError
from tersor.runtime.residency.state import GroupSlot, ModelState

if TYPE_CHECKING:
    from tersor.runtime.residency.pool import Residency


class ModelWeights:
    """Gives a model its weights by group (a `models.contracts.WeightSource`). Thread-safe."""

    def __init__(self, pool: Residency, model: ModelState) -> None:
        self._pool = pool
        self._model = model
        self._slots = {slot.name: slot for slot in model.slots}

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def groups(self) -> tuple[str, ...]:
        """Group names in execution order."""
        return tuple(self._slots)

    @property
    def resident_bytes(self) -> int:
        """Device bytes of this model's resident groups."""
        return self._model.device_bytes

    @property
    def host_bytes(self) -> int:
        """Compressed bytes of this model kept in host memory."""
        return self._model.host_bytes

    @property
    def resident_groups(self) -> int:
        """Groups on the device now."""
        return len(self._slots) - self._model.absent

    @property
    def waited_seconds(self) -> float:
        """Total time that computations of this model stood still for weights; only ever grows."""
        return self._model.waited_seconds

    def acquire(self, group: str) -> GroupSlot:
        """The weights of `group`, resident until the context exits; blocks while they load.

        Groups that follow in execution order are loaded meanwhile. Entering raises:
            ModelLoadError: the weights cannot be read; the next acquire tries again.
            OutOfMemoryError: the memory budget cannot hold the group.
            ShuttingDownError: the model was removed.

        Raises:
            WeightError: the bundle has no such group.
        """
        try:
            return self._slots[group]
        except KeyError:
            known = ", ".join(self._slots)
            raise WeightError(
                f"model {self.name}: got group {group!r}, expected one of {known}"
            ) from None

    def preload(self) -> bool:
        """Loads every group in execution order; False if the budget ended before the groups did.

        Raises what acquire raises.
        """
        for slot in self._slots.values():
            if not self._pool.has_room(slot):
                return False
            with slot:
                pass
        return True
