"""Every model of the process: bundles opened, weights owned, engines running."""

from tersor.runtime.host.host import ModelHost
from tersor.runtime.host.served import ServedDecoder, ServedGraph, ServedModel

__all__ = ["ModelHost", "ServedDecoder", "ServedGraph", "ServedModel"]
