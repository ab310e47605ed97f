"""How long work reports on itself: a call per tensor, drawn by whoever is watching."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Watches a conversion or an extraction. Called on the working thread; must return quickly.

    The watcher keeps the clock: with bytes done and bytes in total it knows rate and time left.
    """

    def update(self, *, item: str, done_bytes: int, total_bytes: int) -> None:
        """`item` is being worked on; `done_bytes` of `total_bytes` lie behind."""
        ...


class ByteMeter:
    """Counts the bytes of finished items and tells `progress`; silent without one."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self._progress = progress
        self._total_bytes = total_bytes
        self._done_bytes = 0

    def begin(self, item: str) -> None:
        """`item` is worked on from now."""
        self._tell(item)

    def finish(self, item: str, num_bytes: int) -> None:
        """`item`, of `num_bytes`, is done."""
        self._done_bytes += num_bytes
        self._tell(item)

    def _tell(self, item: str) -> None:
        if self._progress is not None:
            self._progress.update(
                item=item, done_bytes=self._done_bytes, total_bytes=self._total_bytes
            )
