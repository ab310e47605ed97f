"""Searches the best cut of a kernel for one weight, by timing candidates on a GPU.

Best first: the next candidate is the untried one that differs least from the best so far, and
differing in splits comes before what has to be compiled. So a search that is cut short by its
budget has tried what is most likely to help. A candidate counts only if it computes the product,
with the same bits for a row whatever the batch.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.bench.products import multiplied
from tersor.kernels.bench.timing import graph_seconds
from tersor.kernels.gemv.config import GEMM_MIN_ROWS, weight_cut
from tersor.kernels.layout import Layout
from tersor.kernels.tuning import Asked, Cut, Shape, gpu_of, trying

BNS = (16, 32, 64, 128)
NUM_WARPS = (1, 2, 4)
NUM_STAGES = (2, 3, 4)
SPLITS = (1, 2, 4, 8)
TILE_ROWS = 16  # of the weight, in one tensor core instruction
MIN_STEPS = 2  # loop steps of a program: with fewer its pipeline never fills
BATCHES = (1, 8, 32)  # rows of x whose times decide together
WORTH = 0.98  # a cut must take less than this share of the best's time: the rest is noise
# Not timed on: slower than the best by this much for one row of x, no batch will make up for it.
HOPELESS = 1.15
NEAR_ROOFLINE = 0.97  # of the copy bandwidth: nothing left to find
REPLAYS = 10
# Error of a product relative to |x| @ |w|.T: three roundings to bf16 (see the kernels' tests).
TOLERANCE = 3 * 2**-8
# Coordinates by what changing them costs: splits are an argument, the others are compiled in.
_COSTS = {"splits": 1, "bn": 2, "num_warps": 2, "num_stages": 2}
Score = Callable[[Cut], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The outcome for one weight."""

    shapes: tuple[Shape, ...]  # what asked for a cut: a layout may launch more than one kernel
    cut: Cut
    speedup: float  # over the cut it had, in the mean over BATCHES
    tried: int
    of: int  # candidates


def candidates(n: int, steps: int, processors: int) -> list[Cut]:
    """The cuts worth compiling for a weight of n rows, on a GPU of so many multiprocessors.

    Without those that leave half the GPU idle, as far as any cut does better, and those with more
    warps than tiles of 16 rows: two warps on one tile each decode all of it (compiled for sm_90,
    int8 takes 3.4 instructions a weight with 16 rows and one warp, 6.3 with two, 12.2 with four).
    """
    grid = [
        Cut(bn=bn, num_warps=num_warps, num_stages=num_stages, splits=splits)
        for bn, num_warps, num_stages, splits in itertools.product(
            BNS, NUM_WARPS, NUM_STAGES, SPLITS
        )
        if (splits == 1 or steps >= MIN_STEPS * splits) and bn >= TILE_ROWS * num_warps
    ]
    programs = {cut: -(-n // cut.bn) * cut.splits for cut in grid}
    enough = min(processors / 2, max(programs.values()))
    return [cut for cut in grid if programs[cut] >= enough]


def best_first(
    start: Cut, grid: Sequence[Cut], score: Score, *, done: Callable[[], bool]
) -> tuple[Cut, float, int]:
    """Finds the cut of the lowest score.

    Args:
        start: where to begin.
        grid: the candidates.
        score: seconds; infinity for what does not work.
        done: asked before each candidate whether to stop.

    Returns:
        The best cut, its score, and how many were tried.
    """
    best, best_score = start, score(start)
    untried = [cut for cut in grid if cut != start]
    tried = 1
    while untried and not done():
        near = min(untried, key=lambda cut: _distance(cut, best))  # of equals the first in the grid
        untried.remove(near)
        tried += 1
        got = score(near)
        if got < WORTH * best_score:
            best, best_score = near, got
    return best, best_score, tried


def _distance(a: Cut, b: Cut) -> int:
    return sum(cost for name, cost in _COSTS.items() if getattr(a, name) != getattr(b, name))


def search(
    weights: Sequence[Layout], *, device: torch.device, bandwidth: float, seconds: float
) -> Found | None:
    """The best cut for equal `weights`, which together evict the cache.

    None if the layout asks for no cut, or no cut computes its products.

    Args:
        weights: one layout, so many times.
        device: the CUDA device they are on.
        bandwidth: of a copy, bytes a second.
        seconds: how long to search; the candidate being measured then is finished.
    """
    deadline = time.monotonic() + seconds
    asked = _asked(weights[0])
    gpu = gpu_of(device)
    if not asked or gpu is None:
        return None
    first = asked[0]
    start = weight_cut(first.kernel, n=first.n, k=first.k, steps=first.steps, device=device)
    steps = min(each.steps for each in asked)
    grid = candidates(first.n, steps, gpu.processors)
    measure = _Measure(weights)
    roofline = weights[0].resident_bytes / bandwidth / NEAR_ROOFLINE

    def done() -> bool:
        return time.monotonic() > deadline or measure.best_single < roofline

    cut, best, tried = best_first(start, grid, measure, done=done)
    if math.isinf(best):
        return None
    return Found(
        shapes=tuple(dict.fromkeys(Shape(each.kernel, each.n, each.k) for each in asked)),
        cut=cut,
        speedup=measure.first / best,
        tried=tried,
        of=len(grid),
    )


def _asked(weight: Layout) -> list[Asked]:
    x = torch.zeros(1, weight.shape[1], dtype=torch.bfloat16, device=weight.device)
    with trying(None) as trial:
        weight.matmul(x)
    return trial.asked


class _Measure:
    """Scores cuts: seconds of a product, in the geometric mean over BATCHES."""

    def __init__(self, weights: Sequence[Layout]) -> None:
        self._weights = weights
        weight = weights[0]
        generator = torch.Generator(weight.device).manual_seed(0)
        self._x = torch.randn(
            GEMM_MIN_ROWS - 1,
            weight.shape[1],
            generator=generator,
            dtype=torch.float32,
            device=weight.device,
        ).to(torch.bfloat16)
        self._exact, self._bound = _expected(weight, self._x)
        self.first = math.inf  # score of the first cut measured
        self.best_single = math.inf  # seconds of the fastest product of one row

    def __call__(self, cut: Cut) -> float:
        from triton import TritonError  # a CPU need not have it

        try:
            with trying(cut):
                score = self._score()
        except TritonError:  # more registers or shared memory than there are, or a tile too small
            score = math.inf
        self.first = score if math.isinf(self.first) else self.first
        return score

    def _score(self) -> float:
        # One row first: a single variant to compile, and most candidates go no further.
        if not self._is_right(1):
            return math.inf
        single = self._seconds(1)
        if single > HOPELESS * self.best_single:
            return math.inf
        rest = [batch for batch in BATCHES if batch > 1]
        if not all(self._is_right(batch) for batch in (*rest, GEMM_MIN_ROWS - 1)):
            return math.inf
        if not self._rows_keep_their_bits():
            return math.inf
        self.best_single = min(self.best_single, single)
        times = [single, *(self._seconds(batch) for batch in rest)]
        return math.exp(sum(map(math.log, times)) / len(times))

    def _seconds(self, batch: int) -> float:
        launches = multiplied(self._weights, self._x[:batch])
        return graph_seconds(launches, replays=REPLAYS) / len(self._weights)

    def _is_right(self, batch: int) -> bool:
        y = self._weights[0].matmul(self._x[:batch]).to(torch.float32)
        error = (y - self._exact[:batch]).abs()
        return bool((error <= TOLERANCE * self._bound[:batch]).all())  # false for NaN, too

    def _rows_keep_their_bits(self) -> bool:
        whole = self._weights[0].matmul(self._x)
        return all(
            torch.equal(self._weights[0].matmul(self._x[:batch]), whole[:batch])
            for batch in (1, 8, 9, 17, 33)
        )


def _expected(weight: Layout, x: Tensor) -> tuple[Tensor, Tensor]:
    """The products x @ w.T and |x| @ |w|.T in float32, [M, N]."""
    wide = x.to(torch.float32)
    dense = weight.dense(torch.float32)
    return wide @ dense.T, wide.abs() @ dense.abs().T
