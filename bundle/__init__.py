"""The bundle: one file that holds a compressed model with everything needed to serve it.

Bytes only: this package knows neither torch nor what a layout computes.
"""

from tersor.bundle.errors import BundleError
from tersor.bundle.manifest import Manifest
from tersor.bundle.phases import PhaseTimes
from tersor.bundle.reader import BundleReader, EncodedPlane
from tersor.bundle.writer import BundleWriter, PlaneData

__all__ = [
    "BundleError",
    "BundleReader",
    "BundleWriter",
    "EncodedPlane",
    "Manifest",
    "PhaseTimes",
    "PlaneData",
]
