"""The tables of 16 values that ship, and how a group's scale is searched for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Candidate scales: shares of absmax / (largest value of the table). 1.0 first, so that ties keep
# the plain rule.
_SPANS = (1.0, 1.04, 0.96, 0.92, 0.88, 0.84)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook:
    """A table and the form of its scales."""

    values: tuple[float, ...]  # by code; 0 is among them, so that zeros stay exactly zero
    scale: Literal["bf16", "e8m0", "e4m3"]
    spans: tuple[float, ...] = _SPANS


# QLoRA, arXiv:2305.14314, appendix E: quantiles of a normal distribution.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# E2M1, OCP Microscaling Formats (MX) Specification 1.0, section 5.3.3; bit 3 is the sign.
_FP4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4 = (*_FP4_MAGNITUDES, *(-each for each in _FP4_MAGNITUDES))
_POW2_MAGNITUDES = (0.0, *(2.0**exponent for exponent in range(-6, 1)))
_POW2 = (*_POW2_MAGNITUDES, *(-each for each in _POW2_MAGNITUDES))

CODEBOOKS: Mapping[str, Codebook] = {
    "nf4": Codebook(values=_NF4, scale="bf16"),
    # Powers of two alone: the specification's rule, 2^(floor(log2(absmax)) - 2), and its neighbours
    # (scales are rounded down, and 1.5 is 6 / 4).
    "mxfp4": Codebook(values=_FP4, scale="e8m0", spans=(1.5, 0.75, 3.0)),
    "nvfp4": Codebook(values=_FP4, scale="e4m3"),
    # An octave: beyond it the same values come again, shifted by one.
    "pow2": Codebook(
        values=_POW2, scale="bf16", spans=(1.0, 0.93, 0.87, 0.81, 0.75, 0.7, 0.65, 0.6, 1.07, 1.15)
    ),
}
