"""The `int6` layout: six bits per weight, a step per row or tensor, perhaps sparse outliers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from tersor.kernels.checks import check_floating, check_matrix_shape, check_planes
from tersor.kernels.errors import LayoutError
from tersor.kernels.form import Form, FormLayout
from tersor.kernels.int6.forms import BytesForm, WordsForm
from tersor.kernels.int6.reference import HIGHEST, LOWEST
from tersor.kernels.layout import Params, PlaneSpec
from tersor.kernels.outliers import (
    Outliers,
    RowOutliers,
    SlicedOutliers,
    check_outliers,
    outlier_count,
    outlier_dtypes,
    outlier_specs,
    outliers_of_rows,
    params_with_outliers,
)
from tersor.kernels.outliers.form import OutlierForm
from tersor.kernels.outliers.slices import MAX_COLUMNS


class Int6Layout(FormLayout):
    """w = codes * scales + outliers.

    Planes: `codes` i8 [N, K] from -32 to 31, `scales` bf16 [N], and the outliers' (see
    `kernels.outliers`). Parameters, both optional: `step` ("tensor": scales is [1]) and `outliers`
    (their count).

    `matmul` rounds fp32 activations to bf16, on the CPU up to the rows that `int8` does: its path
    is taken there, a byte a code.
    """

    name: ClassVar[str] = "int6"

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        n, k = check_matrix_shape(cls.name, shape)
        check_floating(cls.name, dtype)
        if not params.keys() <= {"step", "outliers"}:
            raise LayoutError(
                f"layout `int6` takes no parameters but `step` and `outliers`, got {sorted(params)}"
            )
        if "step" in params and params["step"] != "tensor":
            raise LayoutError(
                f"`step` of layout `int6` must be 'tensor' or absent, got {params['step']!r}"
            )
        return {
            "codes": PlaneSpec("i8", (n, k)),
            "scales": PlaneSpec("bf16", (1 if "step" in params else n,)),
            **outlier_specs(outlier_count(cls.name, params, n, k)),
        }

    @classmethod
    def from_planes(
        cls,
        planes: Mapping[str, Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        params: Params,
        device: torch.device,
    ) -> Self:
        specs = cls.plane_specs(shape, dtype, params)
        n, k = check_matrix_shape(cls.name, shape)
        expected = {
            "codes": (torch.int8, (n, k)),
            "scales": (torch.bfloat16, specs["scales"].shape),
            **outlier_dtypes(outlier_count(cls.name, params, n, k)),
        }
        check_planes(cls.name, planes, expected)
        low, high = (int(bound) for bound in torch.aminmax(planes["codes"]))
        if low < LOWEST or high > HIGHEST:
            raise LayoutError(
                f"`int6.codes` holds {low if low < LOWEST else high}, expected {LOWEST}..{HIGHEST}"
            )
        planes = {name: plane.to(device) for name, plane in planes.items()}
        form = _pack(planes["codes"], planes["scales"], check_outliers(cls.name, planes, n, k))
        return cls(form, (n, k), dtype, planes["codes"].device)

    @classmethod
    def rows_of_planes(
        cls, planes: Mapping[str, Tensor], start: int, stop: int, params: Params
    ) -> Mapping[str, Tensor]:
        steps = {name: planes[name] for name in ("scales",) if name in planes}
        by_row = (
            {"codes": planes["codes"]} if "step" in params else {"codes": planes["codes"], **steps}
        )
        cut = super().rows_of_planes(by_row, start, stop, params)
        return {**steps, **cut, **outliers_of_rows(planes, start, stop)}

    @classmethod
    def params_of_planes(cls, planes: Mapping[str, Tensor], params: Params) -> Params:
        return params_with_outliers(planes, params)


def _pack(codes: Tensor, scales: Tensor, outliers: Outliers | None) -> Form:
    on_cpu = codes.device.type == "cpu"
    if not on_cpu and (outliers is None or codes.shape[1] <= MAX_COLUMNS):
        sliced = None if outliers is None else SlicedOutliers.pack(outliers)
        return WordsForm.pack(codes, scales, sliced)
    form = BytesForm.pack(codes, scales) if on_cpu else WordsForm.pack(codes, scales, None)
    if outliers is None:
        return form
    return OutlierForm(inner=form, outliers=RowOutliers.pack(outliers))
