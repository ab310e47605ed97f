"""What a run found, for people, as rows of a table, and as files."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from fuzz_cases import TARGET_NAMES, Failure, Tally
from fuzz_worker import HANG_SECONDS, SPARE_ADDRESS_BYTES, SPARE_RESIDENT_BYTES

_SHOWN = 20


def summary(tally: Tally, *, seed: int, workers: int, seconds: float) -> str:
    """Some lines: cases and outcomes by target, what was found, and how to have it again."""
    lines = [
        f"{tally.cases} cases, seed {seed}, {workers} workers, {seconds:.0f} s, "
        f"{tally.cases / max(seconds, 1e-9):.0f} cases/s; limits of a worker: "
        f"{SPARE_ADDRESS_BYTES >> 20} MiB of address space and {SPARE_RESIDENT_BYTES >> 20} MiB of "
        f"memory above its baseline, {HANG_SECONDS:g} s a case"
    ]
    by_target = _by_target(tally)
    for name in TARGET_NAMES:
        counts = by_target.get(name)
        if counts:
            outcomes = ", ".join(f"{what} {count}" for what, count in counts.most_common())
            lines.append(f"  {name:<19}{counts.total():>9}  {outcomes}")
    slowest, case, target = tally.slowest
    lines.append(f"slowest: {1000 * slowest:.0f} ms, case {case} ({target})")
    lines.append(f"peak memory: {tally.peak_growth_bytes >> 20} MiB above a worker's baseline")
    if tally.lost:
        lines.append(f"outcomes lost with workers that died: {tally.lost}")
    lines.append(f"findings: {len(tally.failures)}")
    seen: Counter[str] = Counter()
    for failure in tally.failures:
        seen[last_line(failure)] += 1
        if seen[last_line(failure)] == 1 and len(seen) <= _SHOWN:
            lines += [
                f"\ncase {failure.case}, {failure.target}; alone: python tests/fuzz/run.py "
                f"--seed {seed} --first {failure.case} --cases 1 --target '{failure.target}'",
                failure.what.rstrip(),
            ]
    if seen:
        lines.append("\nby kind:")
        lines += [f"{count:>7}  {what}" for what, count in seen.most_common()]
    return "\n".join(lines)


def rows(tally: Tally, *, seed: int, workers: int, seconds: float) -> list[dict[str, object]]:
    """One row a target, and one for all."""
    by_target = _by_target(tally)
    found = Counter(failure.target for failure in tally.failures)
    result: list[dict[str, object]] = [
        _row(name, counts, found[name]) for name, counts in by_target.items()
    ]
    whole: Counter[str] = sum(by_target.values(), Counter())
    result.append(_row("all", whole, len(tally.failures)))
    common = {
        "seed": seed,
        "workers": workers,
        "seconds": round(seconds, 1),
        "slowest_ms": round(1000 * tally.slowest[0], 1),
        "peak_mib": tally.peak_growth_bytes >> 20,
    }
    return [{**row, **common} for row in result]


def save(tally: Tally, folder: Path) -> None:
    """Writes the input of each finding that has one, and what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    for failure in tally.failures:
        path = folder / f"{failure.case}-{failure.target.replace(', ', '-').replace(' ', '-')}"
        path.with_suffix(".txt").write_text(failure.what, encoding="utf-8")
        if failure.input:
            path.with_suffix(".bin").write_bytes(failure.input)


def last_line(failure: Failure) -> str:
    """The line of a traceback that says what happened."""
    return failure.what.rstrip().rpartition("\n")[2][:160]


def _by_target(tally: Tally) -> dict[str, Counter[str]]:
    result: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (target, outcome), count in tally.outcomes.items():
        result[target][outcome] += count
    return {name: result[name] for name in TARGET_NAMES if name in result}


def _row(target: str, counts: Counter[str], findings: int) -> dict[str, object]:
    cases = counts.total()
    accepted = counts["accepted"]
    return {
        "target": target,
        "cases": cases,
        "accepted": accepted,
        "refused": cases - accepted - findings,
        "findings": findings,
    }
