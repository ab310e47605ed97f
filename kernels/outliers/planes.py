"""The planes of sparse outliers at rest, checked.

A layout that takes them has the optional parameter `outliers`, their count, and the planes
`outlier_positions` u32 [count], flat row-major and ascending strictly, and `outlier_values` bf16
[count]. The weight is what its codes decode to, plus the values at their positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.errors import LayoutError
from tersor.kernels.layout import Params, PlaneSpec

POSITIONS, VALUES = "outlier_positions", "outlier_values"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outliers:
    """Checked outliers of a weight [n, k]."""

    positions: Tensor  # int64 [count], ascending strictly, below n * k
    values: Tensor  # bf16 [count]
    n: int
    k: int


def outlier_count(layout: str, params: Params, n: int, k: int) -> int:
    """The parameter `outliers` of a weight [n, k]; 0 if it is absent.

    Raises:
        LayoutError: it is no whole number from 1 to n * k, or positions would not fit 32 bits.
    """
    if "outliers" not in params:
        return 0
    count = params["outliers"]
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= n * k:
        raise LayoutError(
            f"`outliers` of layout `{layout}` must be an integer from 1 to N * K = {n * k}, got "
            f"{count!r}; leave it out where there are none"
        )
    if n * k > 1 << 32:
        raise LayoutError(
            f"layout `{layout}` keeps outliers at 32-bit positions, too few for [{n}, {k}]"
        )
    return count


def outlier_specs(count: int) -> Mapping[str, PlaneSpec]:
    """The planes of `count` outliers: none for 0."""
    if not count:
        return {}
    return {POSITIONS: PlaneSpec("u32", (count,)), VALUES: PlaneSpec("bf16", (count,))}


def outlier_dtypes(count: int) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
    """`outlier_specs` as `check_planes` takes them."""
    if not count:
        return {}
    return {POSITIONS: (torch.uint32, (count,)), VALUES: (torch.bfloat16, (count,))}


def check_outliers(layout: str, planes: Mapping[str, Tensor], n: int, k: int) -> Outliers | None:
    """The outliers among the planes of a weight [n, k], of right shapes already; None without any.

    Raises:
        LayoutError: positions do not ascend, or lie beyond the weight.
    """
    if POSITIONS not in planes:
        return None
    positions = planes[POSITIONS].to(torch.int64)
    if not bool((positions[1:] > positions[:-1]).all()):
        raise LayoutError(f"`{layout}.{POSITIONS}` must ascend strictly, and does not")
    if int(positions[-1]) >= n * k:
        raise LayoutError(
            f"`{layout}.{POSITIONS}` holds {int(positions[-1])}, expected less than N * K = {n * k}"
        )
    return Outliers(positions=positions, values=planes[VALUES], n=n, k=k)


def outliers_of_rows(planes: Mapping[str, Tensor], start: int, stop: int) -> Mapping[str, Tensor]:
    """The planes of the outliers in rows start..stop (or the end); none where there are none.

    `planes` are those of the whole weight, its `codes` [N, K] among them.
    """
    if POSITIONS not in planes:
        return {}
    k = planes["codes"].shape[1]
    positions = planes[POSITIONS].to(torch.int64)
    inside = (positions >= start * k) & (positions < stop * k)
    if not bool(inside.any()):
        return {}
    moved = (positions[inside] - start * k).to(torch.uint32)
    return {POSITIONS: moved, VALUES: planes[VALUES][inside]}


def params_with_outliers(planes: Mapping[str, Tensor], params: Params) -> Params:
    """`params` with the count of outliers that are among `planes`, and without it for none."""
    others = {name: value for name, value in params.items() if name != "outliers"}
    return others | {"outliers": planes[POSITIONS].numel()} if POSITIONS in planes else others
