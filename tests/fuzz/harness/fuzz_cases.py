"""From the number of a case to what it does: everything follows from seed and number."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from fuzz_codecs import Codecs
from fuzz_files import Chunks, Frame, ManifestStructure, ManifestText, Pairs, RawBytes
from fuzz_filters import Filters
from fuzz_parity import Parity
from fuzz_rows import Rows
from fuzz_seeds import Seeds
from fuzz_target import Target


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

    def add(self, other: Tally) -> None:
        """Takes another one in."""
        self.outcomes += other.outcomes
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)
        self.peak_growth_bytes = max(self.peak_growth_bytes, other.peak_growth_bytes)

    @property
    def cases(self) -> int:
        """How many."""
        return self.outcomes.total()


class Cases:
    """All targets, ready to run any case. Made once a process: it takes seconds."""

    def __init__(self) -> None:
        seeds = Seeds.load()
        self.targets: tuple[Target, ...] = (
            RawBytes(seeds),
            Frame(seeds),
            ManifestText(seeds),
            ManifestStructure(seeds),
            Chunks(seeds),
            Codecs(seeds),
            Filters(),
            Rows(seeds),
            Parity(seeds),
            Pairs(seeds),
        )
        self._weights = [target.weight for target in self.targets]

    def run(self, seed: int, case: int, tally: Tally, *, only: str | None = None) -> None:
        """Runs one case.

        Args:
            seed: of the whole run.
            case: its number.
            tally: gets the outcome.
            only: the name of a target to take instead of the one that the case would.
        """
        rng = Random((seed << 64) | case)
        (target,) = rng.choices(self.targets, self._weights)
        if only is not None:
            target = next(target for target in self.targets if target.name == only)
        start = time.perf_counter()
        try:
            outcome = target.run(rng)
        except Exception as error:  # whatever a case raises is what this looks for
            outcome = f"FOUND {type(error).__name__}"
            failure = Failure(
                case=case,
                target=target.name,
                what="".join(traceback.format_exception(error)),
                input=bytes(target.input),
            )
            tally.failures.append(failure)
        seconds = time.perf_counter() - start
        tally.outcomes[target.name, outcome] += 1
        tally.slowest = max(tally.slowest, (seconds, case, target.name))
