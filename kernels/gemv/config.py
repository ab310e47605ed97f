"""How a batched matrix-vector product is cut into programs.

Nothing is tuned in a request: it never waits for a search, CUDA graphs capture without one, and
results do not depend on what was timed. K is cut by the shape of the weight alone and every tile
uses the same tensor core instruction (m16n8k16, which two warps keep on Hopper and Blackwell too),
so a row of x has the same bits whatever the batch, up to GEMM_MIN_ROWS - 1 rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Rows of the weight in a program: one m16 tile pair for each of its two warps.
BN = 64
NUM_WARPS = 2
# ptxas otherwise rounds registers down to 80 or 128 and spills a few to get there (seen for sm_80,
# sm_90); these kernels want loads in flight, not warps.
MAX_REGISTERS = 255
NUM_STAGES = 3
TARGET_PROGRAMS = 768  # about six on each of the 132 SMs of an H100 or H200
MAX_SPLITS = 8  # beyond, adding the partials up costs more than it fills
MIN_STEPS = 4  # loop steps of a program, below which starting its loads dominates
# Rows beyond which a weight is decoded once and multiplied by cuBLAS.
GEMM_MIN_ROWS = 65


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

    `bms`: the tile heights that the kernel was budgeted for, ascending.
    """
    del kernel, k, device  # one rule for all so far
    programs = -(-n // BN)
    splits = 1
    while (
        splits < MAX_SPLITS
        and programs * splits * 2 <= TARGET_PROGRAMS
        and steps >= MIN_STEPS * splits * 2
    ):
        splits *= 2
    steps_per_split = -(-steps // splits)
    return TileConfig(
        bm=next((bm for bm in bms if m <= bm), bms[-1]),
        bn=BN,
        splits=-(-steps // steps_per_split),
        steps_per_split=steps_per_split,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )
