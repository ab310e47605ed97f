"""Layouts and operators: how a compressed weight is resident, and how it multiplies."""

from tersor.kernels.errors import LayoutError
from tersor.kernels.layout import Layout, Params, PlaneSpec, layouts

__all__ = ["Layout", "LayoutError", "Params", "PlaneSpec", "layouts"]
