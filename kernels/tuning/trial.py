"""Trying a cut out: within a `with` block, launches of this thread take it instead of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from tersor.kernels.tuning.cut import Cut


@dataclass(frozen=True, slots=True)
class Asked:
    """A launch that wanted to know its cut."""

    kernel: str
    n: int
    k: int
    steps: int  # of its loop over K


@dataclass(slots=True)
class Trial:
    """A cut being tried, and the launches that met it."""

    cut: Cut | None  # None: launches keep their own, and are only noted
    asked: list[Asked] = field(default_factory=list)


_TRIAL: ContextVar[Trial | None] = ContextVar("tersor_tuning_trial", default=None)


def current_trial() -> Trial | None:
    """The trial that this thread is in."""
    return _TRIAL.get()


@contextmanager
def trying(cut: Cut | None) -> Iterator[Trial]:
    """Launches within take `cut`, and are noted in the trial it gives."""
    trial = Trial(cut)
    token = _TRIAL.set(trial)
    try:
        yield trial
    finally:
        _TRIAL.reset(token)
