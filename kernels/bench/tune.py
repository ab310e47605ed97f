"""From searches to a tuning table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tersor.kernels.bench.kinds import Weights
from tersor.kernels.bench.products import copies_of
from tersor.kernels.bench.search import Found, search
from tersor.kernels.errors import TuningError
from tersor.kernels.tuning import Cut, Shape, TuningTable, gpu_of
from tersor.kernels.tuning.store import read_table, write_table

Report = Callable[[str, str, Found | None], None]  # shape, form, what was found


def tune(
    weights: Sequence[Weights],
    *,
    device: torch.device,
    bandwidth: float,
    seconds: float,
    report: Report,
) -> Mapping[Shape, Cut]:
    """Searches a cut for every kind of weight in every shape, each in its share of the time left.

    Args:
        weights: what to search for.
        device: a CUDA device.
        bandwidth: of a copy, bytes a second.
        seconds: for everything; what is being compiled when they end is finished.
        report: called after each search.
    """
    deadline = time.monotonic() + seconds
    cuts: dict[Shape, Cut] = {}
    searches = [(kind, each) for each in weights for kind in each.kinds]
    # A kind's variants are compiled once for all its shapes, so these follow each other.
    kinds = list(dict.fromkeys(kind.label for kind, _ in searches))
    searches.sort(key=lambda search: kinds.index(search[0].label))
    for index, (kind, each) in enumerate(searches):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        copies = copies_of(kind, each.size, device)
        if not copies:
            continue
        found = search(
            copies, device=device, bandwidth=bandwidth, seconds=left / (len(searches) - index)
        )
        report(each.shape, kind.label, found)
        if found is not None:
            cuts |= dict.fromkeys(found.shapes, found.cut)
    return cuts


def save_cuts(path: Path, cuts: Mapping[Shape, Cut], device: torch.device) -> TuningTable:
    """Writes `cuts` into the table at `path`, beside the other shapes that it has.

    Raises:
        TuningError: what is there is broken, or for another GPU.
        OSError: the file cannot be written.
    """
    gpu = gpu_of(device)
    if gpu is None:
        raise TuningError(f"a tuning table is for a GPU, got {device}")
    before = read_table(path, gpu)
    table = TuningTable(
        device=gpu.name,
        compute_capability=gpu.compute_capability,
        triton=gpu.triton,
        cuts=cuts,
    )
    if before is not None:
        table = replace(table, cuts={**before.cuts, **cuts})
    write_table(path, table)
    return table
