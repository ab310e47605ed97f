"""The `codebook4` layout: four bits per weight index a table, a scale per group of columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from tersor.kernels.checks import (
    check_floating,
    check_matrix_shape,
    check_planes,
)
from tersor.kernels.codebook4.pairs import PairsForm
from tersor.kernels.codebook4.planes import Planes
from tersor.kernels.codebook4.scales import SCALE_DTYPES
from tersor.kernels.codebook4.words import WordsForm
from tersor.kernels.errors import LayoutError
from tersor.kernels.form import Form, FormLayout
from tersor.kernels.int4.packing import block_words
from tersor.kernels.layout import Params, PlaneSpec

# Values of the parameter `scale` -> dtype name of the plane `scales`.
_SCALE_NAMES = {"bf16": "bf16", "f32": "f32", "e8m0": "u8", "e4m3": "f8_e4m3"}
_E8M0_NAN = 255
_WHOLE = {"table", "tensor_scale"}  # planes that all rows share


class Codebook4Layout(FormLayout):
    """w = table[codes] * scales, times `tensor_scale` where scales are e4m3.

    Planes: `codes` u4 [N, K], `scales` [N, G], G = ceil(K / group), `table` f32 [16] and, with e4m3
    scales, `tensor_scale` f32 [1]. Parameters: `group` (columns that share a scale; 0 is the whole
    row; the last group may be short) and `scale`, the form of the scales: "bf16", "f32", "e8m0"
    (plane dtype u8: an exponent b stands for 2^(b - 127)) or "e4m3".

    On a GPU `matmul` rounds fp32 activations and the table's entries to bf16; `dense` and `rows`
    are exact in float32 everywhere.
    """

    name: ClassVar[str] = "codebook4"

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        n, k = check_matrix_shape(cls.name, shape)
        check_floating(cls.name, dtype)
        group, scale = _check_params(params, k)
        specs = {
            "codes": PlaneSpec("u4", (n, k)),
            "scales": PlaneSpec(_SCALE_NAMES[scale], (n, -(-k // group))),
            "table": PlaneSpec("f32", (16,)),
        }
        return specs | {"tensor_scale": PlaneSpec("f32", (1,))} if scale == "e4m3" else specs

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
        group, scale = _check_params(params, k)
        dtypes = {"codes": torch.uint8, "scales": SCALE_DTYPES[scale]}
        check_planes(
            cls.name,
            planes,
            {name: (dtypes.get(name, torch.float32), spec.shape) for name, spec in specs.items()},
        )
        _check_values(planes)
        on_device = {name: plane.to(device) for name, plane in planes.items()}
        canonical = Planes(
            codes=on_device["codes"],
            scales=on_device["scales"],
            table=on_device["table"].contiguous(),
            tensor_scale=on_device.get("tensor_scale"),
            scale=scale,
            group=group,
        )
        return cls(_pack(canonical), (n, k), dtype, canonical.codes.device)

    @classmethod
    def rows_of_planes(
        cls, planes: Mapping[str, Tensor], start: int, stop: int, params: Params
    ) -> Mapping[str, Tensor]:
        cut = super().rows_of_planes(planes, start, stop, params)
        return {**cut, **{name: planes[name] for name in planes.keys() & _WHOLE}}


def _pack(planes: Planes) -> Form:
    takes_words = block_words(planes.group, planes.codes.shape[1]) is not None
    if planes.codes.device.type == "cpu" or not takes_words:
        return PairsForm.pack(planes)
    return WordsForm.pack(planes)


def _check_params(params: Params, k: int) -> tuple[int, str]:
    """(columns per group, form of the scales) of validated parameters."""
    if params.keys() != {"group", "scale"}:
        raise LayoutError(
            f"layout `codebook4` takes the parameters `group` and `scale`, got {sorted(params)}"
        )
    group, scale = params["group"], params["scale"]
    if not isinstance(group, int) or isinstance(group, bool) or group < 0:
        raise LayoutError(f"`group` of layout `codebook4` must be an integer >= 0, got {group!r}")
    if not isinstance(scale, str) or scale not in SCALE_DTYPES:
        raise LayoutError(
            f"`scale` of layout `codebook4` must be one of {', '.join(SCALE_DTYPES)}, got {scale!r}"
        )
    return group or k, scale


def _check_values(planes: Mapping[str, Tensor]) -> None:
    """Raises LayoutError for a code beyond the table, or a number that is not finite."""
    highest = int(planes["codes"].max())
    if highest > 15:
        raise LayoutError(f"`codebook4.codes` holds {highest}, expected symbols 0..15")
    for name in ("scales", "table", "tensor_scale"):
        plane = planes.get(name)
        if plane is None:
            continue
        if plane.dtype == torch.uint8:
            bad = plane == _E8M0_NAN  # the one e8m0 that is no number
        else:
            bad = ~plane.to(torch.float32).isfinite()
        if bool(bad.any()):
            raise LayoutError(
                f"`codebook4.{name}` holds {int(bad.sum())} values that are not finite; expected "
                "finite numbers only: the bundle is damaged"
            )
