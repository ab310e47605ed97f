"""Residency owns weights: disk → host → device, on demand, ahead of use, within a memory budget."""

from tersor.runtime.residency.pool import Residency
from tersor.runtime.residency.source import BundleGroups, EncodedWeights, GroupSource
from tersor.runtime.residency.state import GroupState, WeightObserver
from tersor.runtime.residency.weights import ModelWeights

__all__ = [
    "BundleGroups",
    "EncodedWeights",
    "GroupSource",
    "GroupState",
    "ModelWeights",
    "Residency",
    "WeightObserver",
]
