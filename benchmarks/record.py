"""What every benchmark shares: rows with machine, versions and commit, appended to a CSV."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> str:
    """Processor model, visible cores and, where there is one, the GPU."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} cores{_gpu()}"


def _gpu() -> str:
    import torch

    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def commit() -> str:
    """Short hash of the checkout, with `+` when it has uncommitted changes to tracked code."""
    root = Path(__file__).resolve().parent.parent
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def seconds(function: Callable[[], object], *, repeat: int = 15, warmup: int = 2) -> float:
    """Median wall time of one call: shared machines make the mean a lottery."""
    for _ in range(warmup):
        function()
    samples = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def write(name: str, rows: Sequence[Mapping[str, object]], *, packages: Sequence[str] = ()) -> Path:
    """Replaces `results/<name>.csv` by `rows`, each with machine, versions and commit.

    `packages` are those whose versions matter beside torch's.
    """
    path = RESULTS / f"{name}.csv"
    _replace(path, rows, _common(packages))
    return path


def write_groups(
    name: str, groups: Iterable[Sequence[Mapping[str, object]]], *, packages: Sequence[str] = ()
) -> Path:
    """Writes all rows so far after every group: a run that is stopped leaves what it measured."""
    path, common, rows = RESULTS / f"{name}.csv", _common(packages), list[Mapping[str, object]]()
    for group in groups:
        rows += group
        if rows:
            _replace(path, rows, common)
    return path


def _common(packages: Sequence[str]) -> dict[str, str]:
    common = {"machine": machine(), "torch": version("torch"), "commit": commit()}
    if packages:
        common["packages"] = "; ".join(f"{package} {_version(package)}" for package in packages)
    return common


def _replace(path: Path, rows: Sequence[Mapping[str, object]], common: Mapping[str, str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *common], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **common} for row in rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
