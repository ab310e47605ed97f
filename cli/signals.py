"""SIGINT and SIGTERM while a command works: it ends quietly and leaves no partial file."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it a signal exits with 128 + its number, through every context manager.

    For the main thread. A signal that is ignored stays ignored.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        sys.exit(128 + number)

    before = {n: signal.getsignal(n) for n in _SIGNALS}
    caught = [n for n in _SIGNALS if before[n] is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    except Exception:
        # What C code was doing then may turn the exit into an error of its own.
        if received:
            sys.exit(128 + received[0])
        raise
    finally:
        for number in caught:
            signal.signal(number, before[number])
