"""Measured cuts of skinny products: tables by GPU, where they are kept, and trying a cut out.

A table for all users of a GPU lies beside this file, as <gpu>.json (see `gpu_slug`).
"""

from tersor.kernels.tuning.cut import Cut
from tersor.kernels.tuning.store import Gpu, check_tables, cut_from_tables, gpu_of, user_table
from tersor.kernels.tuning.table import Shape, TuningTable
from tersor.kernels.tuning.trial import Asked, Trial, current_trial, trying

__all__ = [
    "Asked",
    "Cut",
    "Gpu",
    "Shape",
    "Trial",
    "TuningTable",
    "check_tables",
    "current_trial",
    "cut_from_tables",
    "gpu_of",
    "trying",
    "user_table",
]
