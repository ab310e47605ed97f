"""What a model asks of its surroundings: weights by group, and an attention state.

Calibration and evaluation use plain in-memory implementations; serving uses residency and paged KV.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from tersor.kernels.layout import Layout
from tersor.kernels.rotary import Heads

GroupWeights = Mapping[str, Layout]  # tensor name -> resident weight


class WeightSource(Protocol):
    """Gives a model its weights, group by group. Safe from many threads."""

    def acquire(self, group: str) -> AbstractContextManager[GroupWeights]:
        """The weights of `group`, resident until the context exits; may block while they load.

        Raises WeightError for an unknown group, BundleError when they cannot be read.
        """
        ...


class AttentionState(Protocol):
    """Keys and values of the sequences in one forward pass, and attention over them.

    The model passes the flat tokens of all sequences ([T] in total); which token belongs to which
    sequence is the state's knowledge alone. Valid for one forward pass.
    """

    def attend(self, layer: int, heads: Heads, *, scale: float, window: int | None) -> Tensor:
        """Rotates `heads`, stores their keys and values, and attends the queries causally.

        The heads come as the qkv product leaves them, and the state finishes them: in the launch
        that stores them, or with `heads.split()`.

        `window`: a token sees itself and the window-1 tokens before it; None is unbounded.
        Returns [T, num_heads, head_dim] in `heads.dtype`.
        """
        ...
