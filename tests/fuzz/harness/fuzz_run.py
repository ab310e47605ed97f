"""Starts workers, notices how they die, and adds up what they found."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from ctypes import c_longlong
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext

from fuzz_cases import Share, Tally
from fuzz_worker import HANG_SECONDS, Mark, Work
from fuzz_worker import work as run_share

# A worker that says nothing for so long hangs where no signal handler of Python's runs.
_SILENCE_SECONDS = 3 * HANG_SECONDS
_START_SECONDS = 300.0  # numba may have all of its functions to compile
_POLL_SECONDS = 1.0

Progress = Callable[[Tally], None]


def run_all(
    share: Share,
    workers: int,
    progress: Progress | None = None,
    *,
    work: Work = run_share,
) -> Tally:
    """Runs all cases of a share in that many processes, and goes on when one dies.

    A worker that dies takes with it what came of up to half a second of cases that went well;
    `Tally.lost` counts them.

    Args:
        share: with a step of 1.
        workers: processes.
        progress: called about once a second with what came of all cases so far.
        work: what a process runs.
    """
    context = multiprocessing.get_context("spawn")
    total = Tally()
    running = [
        _Worker(context, replace(share, first=share.first + number, step=workers), work)
        for number in range(min(workers, share.end - share.first))
    ]
    while running:
        wait([worker.pipe for worker in running], _POLL_SECONDS)
        for worker in list(running):
            alive = worker.take(total)
            if alive:
                continue
            running.remove(worker)
            rest = worker.end(total)
            if rest is not None:
                running.append(_Worker(context, rest, work))
        if progress is not None:
            progress(total)
    return total


class _Worker:
    """A process, and how far it has come."""

    def __init__(self, context: SpawnContext, share: Share, work: Work) -> None:
        self._share = share
        self._done = share.first - share.step
        # In memory that outlives the process.
        self._current: c_longlong = context.RawValue(c_longlong, share.first)
        self.pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=work, args=(share, theirs, self._current))
        self._process.start()
        theirs.close()
        self._deadline = time.monotonic() + _START_SECONDS

    def take(self, total: Tally) -> bool:
        """Adds what the worker has to tell; False when it has ended."""
        try:
            while self.pipe.poll():
                mark: Mark = self.pipe.recv()
                self._done = mark.case
                total.add(mark.tally)
                self._deadline = time.monotonic() + _SILENCE_SECONDS
        except (EOFError, OSError):
            return False
        if time.monotonic() > self._deadline:
            self._process.kill()
        return True

    def end(self, total: Tally) -> Share | None:
        """Adds how the process ended; returns what it has left to do, if it died."""
        self.pipe.close()
        self._process.join()
        share = self._share
        status = self._process.exitcode or 0
        if self._done + share.step >= share.end and status == 0:
            return None
        case = self._current.value
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        hung = time.monotonic() > self._deadline
        total.fail(share, case, f"the process {'hangs' if hung else f'ends by {name}'}")
        total.lost += (case - self._done) // share.step - 1
        rest = replace(share, first=case + share.step)
        return rest if rest.first < rest.end else None
