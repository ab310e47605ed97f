"""Fuzzes the bundle format: `python tests/fuzz/run.py --cases 1000000 --workers 2 --seed 0`.

Every case follows from seed and number alone. Exit status 1 if anything was found: an exception
that is no BundleError, a broken promise, a worker that died, a case that takes too long or too much
memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
_PROGRESS_SECONDS = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Runs and reports."""
    # Inherited by the workers, as the path is; threads would only get into each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path[:0] = [
        str(TESTS / "fuzz" / "harness"), str(TESTS / "support"), str(TESTS.parent / "benchmarks"),
    ]  # fmt: skip
    from fuzz_cases import TARGET_NAMES, Share, Tally
    from fuzz_report import rows, save, summary
    from fuzz_run import run_all

    options = _parser(TARGET_NAMES).parse_args(arguments)
    share = Share(
        seed=options.seed,
        first=options.first,
        end=options.first + options.cases,
        only=options.target,
    )
    start = shown = time.monotonic()

    def progress(tally: Tally) -> None:
        nonlocal shown
        if time.monotonic() > shown + _PROGRESS_SECONDS:
            shown = time.monotonic()
            print(f"{tally.cases} cases, {len(tally.failures)} findings", file=sys.stderr)

    tally = run_all(share, options.workers, progress)
    seconds = time.monotonic() - start
    print(summary(tally, seed=options.seed, workers=options.workers, seconds=seconds))
    if options.save is not None:
        save(tally, options.save)
    if options.record:
        from record import write

        write("fuzz", rows(tally, seed=options.seed, workers=options.workers, seconds=seconds))
    return 1 if tally.failures else 0


def _parser(targets: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other cases")
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="number of the first")
    parser.add_argument("--target", choices=targets, help="all cases attack this one")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write what fails there")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/fuzz.csv")
    return parser


if __name__ == "__main__":
    sys.exit(main())
