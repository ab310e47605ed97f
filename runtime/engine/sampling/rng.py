"""One uniform number for each (seed, position), independent of everything else."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_BITS = 24  # what a float32 holds exactly below 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 24 random bits; the same for the same arguments, on any machine.

    Two rounds of the splitmix64 finalizer: the first decorrelates neighbouring seeds, the second
    neighbouring positions.
    """
    mixed = _mix((seed + 0x9E3779B97F4A7C15) & _MASK)
    mixed = _mix((mixed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK)
    return (mixed >> (64 - _BITS)) / (1 << _BITS)


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
