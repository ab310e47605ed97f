"""The paths of layouts on a CPU: which is fastest for so many rows, and which is taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.bench.samples import Sample
from tersor.kernels.crossover import Path, forced_path, path_of
from tersor.kernels.layout import Layout

CPU = torch.device("cpu")
BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
ONLY = "only"  # the path of a layout that has one
PLAIN = "F.linear"
Multiply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRow:
    """One product on one path, measured."""

    n: int
    k: int
    batch: int
    form: str
    path: str
    milliseconds: float
    taken: bool  # whether the layout takes this path for so many rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a layout with several paths does for one number of rows."""

    n: int
    k: int
    batch: int
    form: str
    taken: str
    fastest: str
    loss: float  # time of the path taken over that of the fastest, minus one


def measure_paths(
    kinds: Sequence[Sample], size: tuple[int, int], batches: Sequence[int], *, rounds: int = 5
) -> Iterator[list[PathRow]]:
    """For each M of `batches` every path of every kind, with x [M, k] in fp32.

    `F.linear` in fp32 and bf16 stands beside them. The paths alternate, so that a noisy neighbour
    hurts all alike; a path's time is the lower quartile of `rounds`. With one thread it is that
    thread's time on a processor, which others do not lengthen by taking turns.
    """
    n, k = size
    contenders = _contenders(kinds, n, k)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for batch in batches:
        x = torch.randn(batch, k)
        samples: dict[tuple[str, str], list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, (multiply, _) in contenders.items():
                start = clock()
                multiply(x)
                samples[name].append(clock() - start)
        yield [
            PathRow(
                n=n,
                k=k,
                batch=batch,
                form=form,
                path=path,
                milliseconds=_lower_quartile(samples[form, path]),
                taken=path == (ONLY if layout is None else path_of(layout, batch)),
            )
            for (form, path), (_, layout) in contenders.items()
        ]


def choices(rows: Sequence[PathRow]) -> Iterator[Choice]:
    """The choices among paths that `rows` of one number of rows hold."""
    by_form: dict[str, list[PathRow]] = {}
    for row in rows:
        by_form.setdefault(row.form, []).append(row)
    for form, paths in by_form.items():
        if len(paths) < 2:
            continue
        fastest = min(paths, key=lambda row: row.milliseconds)
        taken = next(row for row in paths if row.taken)
        yield Choice(
            n=taken.n,
            k=taken.k,
            batch=taken.batch,
            form=form,
            taken=taken.path,
            fastest=fastest.path,
            loss=round(taken.milliseconds / fastest.milliseconds - 1, 3),
        )


def _contenders(
    kinds: Sequence[Sample], n: int, k: int
) -> Mapping[tuple[str, str], tuple[Multiply, str | None]]:
    """By form and path: the product, and the name by which the choice among paths is made."""
    wide = torch.randn(n, k)
    narrow = wide.to(torch.bfloat16)
    found: dict[tuple[str, str], tuple[Multiply, str | None]] = {
        ("fp32", PLAIN): (lambda x: F.linear(x, wide), None),
        ("bf16", PLAIN): (lambda x: F.linear(x.to(torch.bfloat16), narrow), None),
    }
    for kind in kinds:
        layout = kind.build(n, k, CPU)
        with forced_path(Path.PACKED) as forced:
            layout.matmul(torch.zeros(1, k))
        if forced.layouts:
            for path in Path:
                found[kind.label, path] = (_on(path, layout), next(iter(forced.layouts)))
        else:
            found[kind.label, ONLY] = (layout.matmul, None)
    return found


def _lower_quartile(seconds: Sequence[float]) -> float:
    """In milliseconds, and never below the fastest."""
    return round(1e3 * statistics.quantiles(seconds, n=4, method="inclusive")[0], 4)


def _on(path: Path, layout: Layout) -> Multiply:
    def run(x: Tensor) -> Tensor:
        with forced_path(path):
            return layout.matmul(x)

    return run
