"""Functions compiled to machine code by numba, kept on disk where that is possible.

They release the GIL. numba costs 0.15 s to import and 0.2 to 0.4 s to compile a function the first
time; afterwards its cache beside the module (or in the user's cache folder) has it. Modules that
use this are imported by the codec that needs them when it first works, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """`function` in machine code, compiled for the types of its first call.

    Inside it, indices are unsigned: numba adds the wrap-around of negative ones to every signed
    index, which costs the rANS decoder 15 %.
    """
    try:
        result: Function = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep a cache in: compile once a process
        result = numba.njit(nogil=True)(function)
    return result


def inlined(function: Function) -> Function:
    """`function` for use inside compiled ones, as if its lines stood there.

    A call that passes an array counts references to it, with two atomic additions each; a few
    lines shared by the loops of a decoder cost more in counting than in working (LZ78 decodes at
    330 instead of 1600 MB/s). Of lines without a branch numba sees that nothing need be counted.
    """
    result: Function = numba.njit(inline="always")(function)
    return result
