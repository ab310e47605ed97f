"""The residual stream of a decoder: what every block reads, and what it leaves to add."""

from __future__ import annotations

from torch import Tensor

from tersor.kernels.norm import add_rms_norm, rms_norm_rows


class ResidualStream:
    """A residual [T, H] and the parts of the last product, which the next norm adds to it.

    That norm reads both anyway, so adding costs no launch, and a product with split K no second
    kernel. Of one forward pass.
    """

    def __init__(self, x: Tensor) -> None:
        """Starts at x [T, H] contiguous, which it takes over."""
        self._x = x
        self._pending: Tensor | None = None

    def add(self, partials: Tensor) -> None:
        """Adds partials [S, T, H], summed over S, when the stream is next read."""
        assert self._pending is None, "every block reads before it adds"
        self._pending = partials

    def norm(self, gain: Tensor, eps: float, *, rows: Tensor | None = None) -> Tensor:
        """RMS norm times gain [H]: [T, H], or [R, H] of only the `rows` int64 [R]."""
        if rows is not None:
            return rms_norm_rows(self._x, self._pending, rows, gain, eps)
        pending, self._pending = self._pending, None
        return add_rms_norm(self._x, pending, gain, eps)
