"""A worker of the fuzzer that the system ends at one of its cases."""

from __future__ import annotations

import os
import signal
from ctypes import c_longlong
from multiprocessing.connection import Connection

from fuzz_cases import Share, Tally
from fuzz_worker import Mark

DEADLY_CASE = 7


def work(share: Share, pipe: Connection, current: c_longlong) -> None:
    """As `fuzz_worker.work`; every case is accepted, and told of alone up to case 3."""
    tally = Tally()
    for case in range(share.first, share.end, share.step):
        current.value = case
        if case == DEADLY_CASE:
            os.kill(os.getpid(), signal.SIGSEGV)
        tally.outcomes["codecs", "accepted"] += 1
        if case <= 3 or case + share.step >= share.end:
            pipe.send(Mark(case, tally))
            tally = Tally()
    pipe.close()
