"""From the number of a case to what it does: everything follows from seed and number."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzz_codecs import Codecs
from fuzz_files import Chunks, Frame, ManifestStructure, ManifestText, Pairs, RawBytes
from fuzz_filters import Filters
from fuzz_parity import Parity
from fuzz_rows import Rows
from fuzz_seeds import Seeds
from fuzz_target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The cases of one worker: `first`, `first + step`, … below `end`."""

    seed: int
    first: int
    end: int
    step: int = 1
    only: str | None = None  # the name of a target that all cases have

    def target(self, case: int) -> str:
        """The name of a case's target."""
        return target_of(self.seed, case, self.only)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A case that found something."""

    case: int
    target: str
    what: str
    input: bytes = field(default=b"", repr=False)


@dataclass(slots=True)
class Tally:
    """What some cases came to. Sums of tallies are tallies."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # by target and outcome
    failures: list[Failure] = field(default_factory=list)
    slowest: tuple[float, int, str] = (0.0, -1, "")  # seconds, case, target
    peak_growth_bytes: int = 0  # of a worker's memory, over what it took before its first case
    lost: int = 0  # cases that went well, whose outcomes are not known

    def add(self, other: Tally) -> None:
        """Takes another one in."""
        self.outcomes += other.outcomes
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)
        self.lost += other.lost
        self.peak_growth_bytes = max(self.peak_growth_bytes, other.peak_growth_bytes)

    def fail(self, share: Share, case: int, what: str) -> None:
        """Adds a case that came to no outcome."""
        target = share.target(case)
        self.failures.append(Failure(case=case, target=target, what=what))
        self.outcomes[target, f"FOUND: {what}"] += 1

    @property
    def cases(self) -> int:
        """How many."""
        return self.outcomes.total()


TARGETS: tuple[type[Target], ...] = (
    RawBytes, Frame, ManifestText, ManifestStructure, Chunks, Codecs, Filters, Rows, Parity, Pairs,
)  # fmt: skip
TARGET_NAMES = tuple(target.name for target in TARGETS)


def target_of(seed: int, case: int, only: str | None = None) -> tuple[str, Random]:
    """The name of a case's target, and the case's random numbers.

    `only` is taken instead of the target that the case would have; the numbers stay the same.
    """
    rng = Random((seed << 64) | case)
    (target,) = rng.choices(TARGETS, [target.weight for target in TARGETS])
    return only or target.name, rng


class Cases:
    """All targets, ready to run any case. Made once a process: it takes seconds."""

    def __init__(self, folder: Path) -> None:
        """`folder` is for files of the case that runs."""
        seeds = Seeds.load(folder)
        self._targets = {target.name: target(seeds, folder) for target in TARGETS}

    def run(self, seed: int, case: int, tally: Tally, *, only: str | None = None) -> None:
        """Runs one case, and adds what came of it to `tally`; arguments as of `target_of`."""
        name, rng = target_of(seed, case, only)
        target = self._targets[name]
        start = time.perf_counter()
        try:
            outcome = target.run(rng)
        except Exception as error:  # noqa: BLE001 - whatever a case raises is looked for
            outcome = f"FOUND {type(error).__name__}"
            tally.failures.append(
                Failure(
                    case=case,
                    target=name,
                    what="".join(traceback.format_exception(error)),
                    input=bytes(target.input),
                )
            )
        seconds = time.perf_counter() - start
        tally.outcomes[name, outcome] += 1
        tally.slowest = max(tally.slowest, (seconds, case, name))
