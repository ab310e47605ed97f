"""Pruning: the weights of least magnitude become exact zeros, which the codec pays for."""

from __future__ import annotations

from tersor.converters.prune.magnitude import prune_magnitude_, prune_pattern_

__all__ = ["prune_magnitude_", "prune_pattern_"]
