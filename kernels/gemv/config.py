"""How a batched matrix-vector product is cut into programs.

A measured table (`kernels.tuning`) says it, or else a rule from the shape of the weight and the
GPU's size. Nothing is tuned in a request: it never waits for a search, CUDA graphs capture without
one, and results do not depend on what was timed in between. K is cut by the weight alone and every
tile of the rule uses the same tensor core instruction (m16n8k16, which two warps keep on Hopper and
Blackwell too), so a row of x has the same bits whatever the batch, up to GEMM_MIN_ROWS - 1 rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from tersor.kernels.tuning import Asked, Cut, Shape, current_trial, cut_from_tables, gpu_of

# Rows of the weight in a program: one m16 tile pair for each of its two warps.
BN = 64
NUM_WARPS = 2
# ptxas otherwise rounds registers down to 80 or 128 and spills a few to get there (seen for sm_80,
# sm_90); these kernels want loads in flight, not warps.
MAX_REGISTERS = 255
NUM_STAGES = 3
MAX_SPLITS = 8  # beyond, adding the partials up costs more than it fills
MIN_STEPS = 4  # loop steps of a program, below which starting its loads dominates
# Rows beyond which a weight is decoded once and multiplied by cuBLAS.
GEMM_MIN_ROWS = 65

# Programs to have for each multiprocessor, by major compute capability. The bytes in flight that
# hide the latency of memory are some 11 KB a multiprocessor on an A100, 23 on an H200 and 43 on a
# B200 (bandwidth times 0.7 us); a program holds about 16 KB, and as many again wait to follow it.
# From data sheets: not measured.
PROGRAMS_PER_PROCESSOR: Mapping[int, int] = {8: 4, 9: 6, 10: 8}
DEFAULT_PROGRAMS_PER_PROCESSOR = 6
DEFAULT_PROCESSORS = 132  # of an H100 or H200, where the device is only talked about


@dataclass(frozen=True, slots=True, kw_only=True)
class TileConfig:
    """How one launch is cut."""

    bm: int  # rows of x in a program
    bn: int  # rows of the weight in a program
    splits: int  # programs that share a tile, each with its part of K
    steps_per_split: int
    num_warps: int
    num_stages: int


def tile_config(
    kernel: str,
    *,
    m: int,
    n: int,
    k: int,
    steps: int,
    bms: tuple[int, ...],
    device: torch.device,
) -> TileConfig:
    """The cut for x [m, k] and a weight [n, k] whose K takes `steps` loop steps of `kernel`.

    `bms`: the tile heights that the kernel was budgeted for, ascending. m decides among them, and
    nothing else.

    Raises:
        TuningError: a tuning table of the device is broken.
    """
    trial = current_trial()
    if trial is not None:
        trial.asked.append(Asked(kernel, n, k, steps))
        if trial.cut is not None:
            return _tile(trial.cut, m, steps, bms)
    return _tile_config(kernel, m, n, k, steps, bms, device)


# A launch asks every time, and a decode step has two hundred: a hit takes 0.5 us.
@lru_cache(maxsize=8192)
def _tile_config(
    kernel: str, m: int, n: int, k: int, steps: int, bms: tuple[int, ...], device: torch.device
) -> TileConfig:
    return _tile(weight_cut(kernel, n=n, k=k, steps=steps, device=device), m, steps, bms)


def _tile(cut: Cut, m: int, steps: int, bms: tuple[int, ...]) -> TileConfig:
    steps_per_split = -(-steps // min(cut.splits, steps))
    return TileConfig(
        bm=next((bm for bm in bms if m <= bm), bms[-1]),
        bn=cut.bn,
        splits=-(-steps // steps_per_split),
        steps_per_split=steps_per_split,
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
    )


def weight_cut(kernel: str, *, n: int, k: int, steps: int, device: torch.device) -> Cut:
    """The cut of a weight [n, k]: measured for exactly this kernel and shape, or by the rule.

    Raises:
        TuningError: a tuning table of the device is broken.
    """
    gpu = gpu_of(device)
    measured = None if gpu is None else cut_from_tables(gpu, Shape(kernel, n, k))
    if measured is not None:
        return measured
    major = 0 if gpu is None else gpu.compute_capability[0]
    processors = DEFAULT_PROCESSORS if gpu is None else gpu.processors
    wanted = processors * PROGRAMS_PER_PROCESSOR.get(major, DEFAULT_PROGRAMS_PER_PROCESSOR)
    return rule(n, steps, programs=wanted)


def rule(n: int, steps: int, *, programs: int) -> Cut:
    """The cut of a weight of n rows that was not measured, for a GPU that wants `programs`."""
    splits = 1
    while (
        splits < MAX_SPLITS
        and -(-n // BN) * splits * 2 <= programs
        and steps >= MIN_STEPS * splits * 2
    ):
        splits *= 2
    return Cut(bn=BN, num_warps=NUM_WARPS, num_stages=NUM_STAGES, splits=splits)


def partial_count(kernel: str, *, n: int, k: int, steps: int, device: torch.device) -> int:
    """Into how many partial sums a launch of `kernel` would cut the K of a weight [n, k]."""
    return _tile_config(kernel, 1, n, k, steps, (8,), device).splits
