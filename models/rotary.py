"""Rotary position embedding of the canonical decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tersor.bundle.program import DecoderProgram, RopeScaling
from tersor.kernels.rotary import Rotation

_FIRST_POSITIONS = 256  # rows of the first table on a CPU; it doubles from there


class Rotary:
    """Cosines and sines of positions, in the activations' dtype.

    On a CPU they are looked up in a table that grows as positions are used; it is 1 / (layers *
    kv heads) of the keys and values of a sequence that long. Elsewhere they are computed for every
    pass: knowing how large a table must be would make the host wait for the device, and a table of
    the whole context takes 67 MB for 131072 positions of 128 in bf16.
    """

    def __init__(
        self, program: DecoderProgram, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        frequencies = inverse_frequencies(program)
        # Negative for the first half: the cosines are the same, and the sines have their signs.
        self._frequencies = torch.cat((-frequencies, frequencies)).to(device)  # [head_dim]
        self._dtype = dtype
        self._table = self._rows(torch.arange(_FIRST_POSITIONS)) if device.type == "cpu" else None

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of positions int64 [T]."""
        if self._table is None:
            rows = self._rows(positions)
        else:
            rows = self._grown(self._table, positions).index_select(0, positions)
        return Rotation(rows[:, 0:1], rows[:, 1:2])

    def _grown(self, table: Tensor, positions: Tensor) -> Tensor:
        last = int(positions.max()) if positions.numel() else 0
        if last < table.shape[0]:
            return table
        # Two threads may both grow it; either result is right.
        self._table = self._rows(torch.arange(max(last + 1, 2 * table.shape[0])))
        return self._table

    def _rows(self, positions: Tensor) -> Tensor:
        """Cosines, then signed sines: [T, 2, head_dim]. Angles are computed in fp32."""
        angles = positions[:, None] * self._frequencies  # [T, head_dim]
        shape = (positions.shape[0], 2, angles.shape[1])
        rows = torch.empty(shape, dtype=self._dtype, device=angles.device)
        torch.cos(angles, out=rows[:, 0])
        torch.sin(angles, out=rows[:, 1])
        return rows


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
