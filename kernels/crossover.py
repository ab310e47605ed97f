"""Where a CPU stops multiplying packed codes, and decodes the weight once for the call instead.

torch's packed kernels read few bytes but pay for every row of x; decoding costs the same for any
number of rows, and the matmul that follows less a row. Between them lies a break-even that depends
on the instructions the CPU has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

import torch

# Rows up to which packed codes are multiplied whatever the break-even: packed rows have the same
# bits whatever the batch, decoded ones do not, and a sequence must not depend on its neighbours.
# It costs int8 on AVX2 up to 24 % over the decoded path at 24 rows and 36 % at 32, and nothing
# elsewhere.
BATCH_ROWS = 32

# Most rows for which packed is the faster path, by instructions and layout, one thread, torch 2.13
# (benchmarks/cpu_matmul.py; milliseconds packed against decoded).
BREAK_EVEN: Mapping[str, Mapping[str, int]] = {
    # 14336 x 4096: int8 57 and 55 for 32 rows, 84 and 68 for 48; int4 104 and 102 for 64, 159 and
    # 128 for 96. Without bf16 instructions; where there are some only bf16 x takes them, to a
    # break-even that has not been measured.
    "AVX512": {"int8": 32, "int4": 64},
    # 4096 x 4096: int8 13.3 and 13.1 for 16 rows, 19.6 and 16.6 for 24, 25.7 and 19.9 for 32;
    # int4 52.2 and 49.9 for 64, 77 and 67 for 96; 1024 x 1024: int4 3.4 and 4.0 for 64.
    "AVX2": {"int8": 16, "int4": 64},
}


class Path(StrEnum):
    """The ways in which a CPU multiplies a quantized weight."""

    PACKED = "packed"
    DECODED = "decoded"


@dataclass(slots=True)
class Forced:
    """A path that products take, and the layouts that would have chosen one."""

    path: Path
    layouts: set[str] = field(default_factory=set)


_FORCED: ContextVar[Forced | None] = ContextVar("tersor_cpu_path", default=None)


@cache
def packed_max_rows(layout: str) -> int:
    """Rows of x up to which this CPU multiplies the packed codes of `layout`."""
    measured = BREAK_EVEN.get(torch.backends.cpu.get_cpu_capability(), {})
    return max(BATCH_ROWS, measured.get(layout, BATCH_ROWS))


def path_of(layout: str, rows: int) -> Path:
    """The path on which `layout` multiplies that many rows here."""
    forced = _FORCED.get()
    if forced is not None:
        forced.layouts.add(layout)
        return forced.path
    return Path.PACKED if rows <= packed_max_rows(layout) else Path.DECODED


@contextmanager
def forced_path(path: Path) -> Iterator[Forced]:
    """Products of this thread take `path` within, which is how both are measured."""
    forced = Forced(path)
    token = _FORCED.set(forced)
    try:
        yield forced
    finally:
        _FORCED.reset(token)
