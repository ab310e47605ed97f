"""One process of a run: its cases in order, within limits of memory and time."""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
import time
from collections.abc import Callable, Iterator
from ctypes import c_longlong
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from fuzz_cases import TARGET_NAMES, Cases, Failure, Share, Tally

HANG_SECONDS = 10.0
# Address space of a process beyond what it has before its first case: a host with a budget of
# 16 MiB a plane and blocks of 64 MiB at most needs no more, so what fails to allocate is unbounded.
SPARE_ADDRESS_BYTES = 1 << 30
# Memory in use beyond that: some blocks of 64 MiB and what decoding them takes.
SPARE_RESIDENT_BYTES = 384 << 20
_REPORT_SECONDS = 0.5
_WARM_UP_CASES = 60


@dataclass(frozen=True, slots=True)
class Mark:
    """What a worker tells its parent: the last case that is done, and what came of some."""

    case: int
    tally: Tally


# What a process runs: it tells the pipe, and the number which case it is at.
Work = Callable[[Share, Connection, c_longlong], None]


class HangError(BaseException):
    """A case took too long; no `except Exception` of the code under test may hold it up."""


def work(share: Share, pipe: Connection, current: c_longlong) -> None:
    """Runs a share.

    Args:
        share: the cases.
        pipe: gets a mark whenever some cases are done, and at the end.
        current: gets the number of the case that runs, for who finds this process dead.
    """
    faulthandler.enable()
    with TemporaryDirectory(prefix="tersor-fuzz-") as folder:
        cases = Cases(Path(folder))
        _warm_up(cases)
        _limit_memory()
        signal.signal(signal.SIGALRM, _alarm)
        _run(cases, share, pipe, current)
    pipe.close()


def _run(cases: Cases, share: Share, pipe: Connection, current: c_longlong) -> None:
    base = peak_bytes()
    allowed = base + SPARE_RESIDENT_BYTES
    tally = Tally()
    pipe.send(Mark(share.first - share.step, tally))
    sent = time.monotonic()
    for case in range(share.first, share.end, share.step):
        current.value = case
        try:
            with _alarmed():
                cases.run(share.seed, case, tally, only=share.only)
        except HangError:
            tally.fail(share, case, f"takes longer than {HANG_SECONDS:g} s")
        peak = peak_bytes()
        tally.peak_growth_bytes = peak - base
        if peak > allowed:
            what = f"takes {(peak - base) >> 20} MiB of memory"
            tally.failures.append(Failure(case=case, target=share.target(case), what=what))
            allowed = peak + (64 << 20)
        due = bool(tally.failures) or time.monotonic() > sent + _REPORT_SECONDS
        if due or case + share.step >= share.end:
            pipe.send(Mark(case, tally))
            tally = Tally()
            sent = time.monotonic()


def peak_bytes() -> int:
    """Most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _warm_up(cases: Cases) -> None:
    """Lets every target import and compile what it needs, so that no case pays for it."""
    for target in TARGET_NAMES:
        for case in range(_WARM_UP_CASES):
            cases.run(0, case, Tally(), only=target)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + SPARE_ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _alarm(number: int, frame: FrameType | None) -> None:
    raise HangError


@contextlib.contextmanager
def _alarmed() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
