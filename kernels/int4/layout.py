"""The `int4` layout: four bits per weight, a scale and perhaps a zero per group of columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from tersor.kernels.checks import check_floating, check_matrix_shape, check_planes
from tersor.kernels.errors import LayoutError
from tersor.kernels.form import Form, FormLayout
from tersor.kernels.int4 import cpu
from tersor.kernels.int4.nibbles import NibblesForm
from tersor.kernels.int4.packing import block_words
from tersor.kernels.int4.planes import Planes
from tersor.kernels.int4.tiles import TilesForm
from tersor.kernels.int4.words import WordsForm
from tersor.kernels.layout import Params, PlaneSpec
from tersor.kernels.outliers import (
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
from tersor.kernels.outliers.planes import Outliers
from tersor.kernels.outliers.slices import MAX_COLUMNS


class Int4Layout(FormLayout):
    """w = (codes - zeros) * scales + outliers, with zeros = 8 where symmetric.

    Planes: `codes` u4 [N, K], `scales` bf16 [N, G] and, unless symmetric, `zeros` u4 [N, G], where
    G = ceil(K / group), and the outliers' (see `kernels.outliers`). Parameters: `group` (columns
    that share a scale; 0 is the whole row; the last group may be short), `symmetric` and, where
    they are not the default, `step` ("tensor": `group` is 0, and scales and zeros are [1, 1]) and
    `outliers` (their count).

    `matmul` rounds fp32 activations to bf16. On the CPU (8 - zero) * scale is held in bf16, so an
    asymmetric weight may differ from its definition by up to 1/64 of a step; results for up to
    `packed_max_rows` (crossover.py) rows have the same bits whatever the number of rows.
    """

    name: ClassVar[str] = "int4"

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        n, k = check_matrix_shape(cls.name, shape)
        check_floating(cls.name, dtype)
        checked = _check_params(params, n, k)
        scales = checked.scales_shape(n, k)
        specs = {"codes": PlaneSpec("u4", (n, k)), "scales": PlaneSpec("bf16", scales)}
        if not checked.symmetric:
            specs["zeros"] = PlaneSpec("u4", scales)
        return {**specs, **outlier_specs(checked.outliers)}

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
        checked = _check_params(params, n, k)
        dtypes = {"codes": torch.uint8, "scales": torch.bfloat16, "zeros": torch.uint8}
        expected = {
            **{name: (dtypes[name], specs[name].shape) for name in dtypes if name in specs},
            **outlier_dtypes(checked.outliers),
        }
        check_planes(cls.name, planes, expected)
        for name in planes.keys() & {"codes", "zeros"}:
            if int(planes[name].max()) > 15:
                raise LayoutError(
                    f"`int4.{name}` holds {int(planes[name].max())}, expected symbols 0..15"
                )
        planes = {name: plane.to(device) for name, plane in planes.items()}
        outliers = check_outliers(cls.name, planes, n, k)
        canonical = Planes(
            codes=planes["codes"],
            scales=planes["scales"],
            zeros=planes.get("zeros"),
            group=checked.group,
        )
        return cls(_pack(canonical, outliers), (n, k), dtype, canonical.codes.device)

    @classmethod
    def rows_of_planes(
        cls, planes: Mapping[str, Tensor], start: int, stop: int, params: Params
    ) -> Mapping[str, Tensor]:
        steps = {name: planes[name] for name in ("scales", "zeros") if name in planes}
        by_row = (
            {"codes": planes["codes"]} if "step" in params else {"codes": planes["codes"], **steps}
        )
        cut = super().rows_of_planes(by_row, start, stop, params)
        return {**steps, **cut, **outliers_of_rows(planes, start, stop)}

    @classmethod
    def params_of_planes(cls, planes: Mapping[str, Tensor], params: Params) -> Params:
        return params_with_outliers(planes, params)


def _pack(planes: Planes, outliers: Outliers | None) -> Form:
    k = planes.codes.shape[1]
    bw = None if planes.codes.device.type == "cpu" else block_words(planes.group, k)
    if bw is not None and k <= MAX_COLUMNS:
        sliced = None if outliers is None else SlicedOutliers.pack(outliers)
        return WordsForm.pack(planes, bw, sliced)
    form = _pack_codes(planes, bw)
    if outliers is None:
        return form
    return OutlierForm(inner=form, outliers=RowOutliers.pack(outliers))


def _pack_codes(planes: Planes, bw: int | None) -> Form:
    """Without outliers; `bw` is None on the CPU, and where words do not take the group."""
    if bw is not None:
        return WordsForm.pack(planes, bw)
    if planes.codes.device.type == "cpu":
        group = cpu.op_group(planes.group, planes.codes.shape[1])
        rows = cpu.tile_rows()
        if group is not None and rows is not None:
            return TilesForm.pack(planes, group, rows)
    return NibblesForm.pack(planes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """Validated parameters."""

    group: int  # columns per scale, at least 1
    symmetric: bool
    per_tensor: bool
    outliers: int  # 0: none

    def scales_shape(self, n: int, k: int) -> tuple[int, int]:
        return (1, 1) if self.per_tensor else (n, -(-k // self.group))


def _check_params(params: Params, n: int, k: int) -> _Checked:
    needed, optional = {"group", "symmetric"}, {"step", "outliers"}
    if not needed <= params.keys() <= needed | optional:
        raise LayoutError(
            "layout `int4` takes the parameters `group` and `symmetric`, and perhaps `step` and "
            f"`outliers`, got {sorted(params)}"
        )
    group, symmetric = params["group"], params["symmetric"]
    if not isinstance(group, int) or isinstance(group, bool) or group < 0:
        raise LayoutError(f"`group` of layout `int4` must be an integer >= 0, got {group!r}")
    if not isinstance(symmetric, bool):
        raise LayoutError(f"`symmetric` of layout `int4` must be a boolean, got {symmetric!r}")
    if "step" in params and params["step"] != "tensor":
        raise LayoutError(
            f"`step` of layout `int4` must be 'tensor' or absent, got {params['step']!r}"
        )
    if "step" in params and group:
        raise LayoutError(f"`step` of layout `int4` is 'tensor', so `group` must be 0, not {group}")
    return _Checked(
        group=group or k,
        symmetric=symmetric,
        per_tensor="step" in params,
        outliers=outlier_count("int4", params, n, k),
    )
