"""The type of the `tersor` fixture: a command line in, what a shell would see out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    """What a shell would see."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]
