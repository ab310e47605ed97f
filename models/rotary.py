"""Rotary position embedding: tables of the canonical decoder and their application."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tersor.bundle.program import DecoderProgram, RopeScaling

_FIRST_POSITIONS = 256  # rows of the first table on a CPU; it doubles from there


class Rotation(NamedTuple):
    """What one forward pass needs: rows of the tables for its positions."""

    cos: Tensor  # [T, 1, head_dim]
    sin: Tensor  # [T, 1, head_dim], the first half negated

    def apply(self, x: Tensor) -> Tensor:
        """Rotates x [T, heads, head_dim] (any strides); returns a new contiguous tensor.

        The pairs are (i, i + head_dim / 2): rolling by half a head brings partners together and
        the sign lives in the table, so this is three kernels instead of the six of the textbook.
        """
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, -1), self.sin)


class RotaryTable:
    """Cosines and sines for every position, in the activations' dtype.

    On a CPU the table grows as positions are used. On CUDA the whole context is tabulated at once:
    looking up the largest position would make the host wait for the device on every forward pass.
    """

    def __init__(
        self, program: DecoderProgram, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._frequencies = inverse_frequencies(program)
        self._device = device
        self._dtype = dtype
        self._fixed = device.type != "cpu"
        rows = program.max_context if self._fixed else min(_FIRST_POSITIONS, program.max_context)
        self._table = self._tabulate(rows)

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of positions int64 [T]."""
        table = self._table
        if not self._fixed and positions.numel():
            last = int(positions.max())
            if last >= table.shape[0]:
                # Two threads may both grow it; either result is right.
                table = self._table = self._tabulate(max(last + 1, 2 * table.shape[0]))
        rows = table.index_select(0, positions)  # [T, 2, head_dim]
        return Rotation(rows[:, 0:1], rows[:, 1:2])

    def _tabulate(self, rows: int) -> Tensor:
        """[rows, 2, head_dim]: cosines, then signed sines. Angles are computed in fp32."""
        positions = torch.arange(rows, dtype=torch.float32)
        angles = torch.outer(positions, self._frequencies)  # [rows, head_dim / 2]
        cos, sin = angles.cos(), angles.sin()
        table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)
        return table.to(self._device, self._dtype)


def inverse_frequencies(program: DecoderProgram) -> Tensor:
    """Radians per position of each pair, scaled: fp32 [head_dim / 2]."""
    exponents = torch.arange(0, program.head_dim, 2, dtype=torch.float32) / program.head_dim
    frequencies = 1.0 / (program.rope_theta**exponents)
    scaling = program.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _llama3(frequencies, scaling)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow pairs are stretched by the factor, fast ones kept, those between interpolated."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_context / wavelengths  # over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor
