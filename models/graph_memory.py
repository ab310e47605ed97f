"""How much memory one run of a graph may take: a graph's sizes are computed by the graph itself."""

from __future__ import annotations

MIN_LIVE_BYTES = 2 << 30
LIVE_BYTES_PER_BYTE_READ = 64  # of weights and inputs; an attention's scores are some tens
_ELEMENT_BYTES = 4  # assumed of a result that is not there yet


class Memory:
    """Adds up the results that are held. A view counts like a copy, which it may become."""

    __slots__ = ("_held", "_limit", "_live")

    def __init__(self, slots: int, limit: int) -> None:
        """Starts empty.

        Args:
            slots: results are held in slots 0 to slots-1.
            limit: bytes, of all slots together.
        """
        self._held = [0] * slots
        self._limit = limit
        self._live = 0

    def check(self, elements: float) -> None:
        """Raises MemoryError if a result of so many elements would be too much."""
        if self._live + elements * _ELEMENT_BYTES > self._limit:
            self._refuse(elements * _ELEMENT_BYTES)

    def hold(self, slot: int, count: int) -> None:
        """Counts a result of `count` bytes; raises MemoryError if it is too much."""
        self._held[slot] = count
        self._live += count
        if self._live > self._limit:
            self._refuse(count)

    def release(self, slot: int) -> None:
        """Forgets the result in a slot, if it was counted."""
        self._live -= self._held[slot]
        self._held[slot] = 0

    def _refuse(self, count: float) -> None:
        raise MemoryError(
            f"{count:.3g} bytes more than {self._live:.3g} held are over the limit of "
            f"{self._limit:.3g} for a run; send fewer rows"
        )
