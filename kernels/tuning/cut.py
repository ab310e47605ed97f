"""What of a launch is tuned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a weight is cut into programs. Of kernel and weight alone, never of the batch.

    That is why a row of x has the same bits whatever rows stand beside it.
    """

    bn: int  # rows of the weight in a program: a power of two
    num_warps: int
    num_stages: int
    splits: int  # programs that share a tile, each with its part of K
