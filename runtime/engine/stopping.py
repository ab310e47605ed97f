"""Stop strings in a stream of text, wherever the pieces are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopScan(NamedTuple):
    """What a piece of text led to."""

    text: str  # may be passed on
    match: str | None  # the stop string that was found; the stream ends before it


class StopStrings:
    """Finds the stop string that is complete first, and holds its possible beginning back.

    The result does not depend on how the text is cut into pieces: of the strings that end first,
    the longest wins.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(sorted(set(stop), key=len, reverse=True))
        self._held = ""

    def push(self, text: str) -> StopScan:
        """Adds text; nothing may be pushed after a match."""
        if not self._stop:
            return StopScan(text, None)
        text = self._held + text
        best: tuple[int, str] | None = None  # end, stop string
        for stop in self._stop:  # longest first, so that a tie keeps the longest
            start = text.find(stop)
            if start >= 0 and (best is None or start + len(stop) < best[0]):
                best = (start + len(stop), stop)
        if best is not None:
            end, match = best
            self._held = ""
            return StopScan(text[: end - len(match)], match)
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return StopScan(text[: len(text) - keep], None)

    def flush(self) -> str:
        """The text held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string may begin with."""
        longest = min(len(text), len(self._stop[0]) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0
