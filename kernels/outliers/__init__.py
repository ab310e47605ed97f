"""Sparse outliers: the few weights that a quantized layout holds a correction for."""

from tersor.kernels.outliers.planes import (
    Outliers,
    check_outliers,
    outlier_count,
    outlier_dtypes,
    outlier_specs,
    outliers_of_rows,
    params_with_outliers,
)
from tersor.kernels.outliers.rows import RowOutliers
from tersor.kernels.outliers.slices import SlicedOutliers

__all__ = [
    "Outliers",
    "RowOutliers",
    "SlicedOutliers",
    "check_outliers",
    "outlier_count",
    "outlier_dtypes",
    "outlier_specs",
    "outliers_of_rows",
    "params_with_outliers",
]
