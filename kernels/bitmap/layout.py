"""The `bitmap` layout: unstructured sparsity, a bit per weight and packed non-zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from tersor.kernels.bitmap.bytes import BytesForm
from tersor.kernels.bitmap.planes import Planes, bit_counts
from tersor.kernels.bitmap.words import WordsForm
from tersor.kernels.checks import (
    check_floating,
    check_matrix_shape,
    check_planes,
)
from tersor.kernels.errors import LayoutError
from tersor.kernels.form import Form, FormLayout
from tersor.kernels.layout import Params, PlaneSpec

MAX_NONZEROS = (1 << 31) - 1  # kernels count them in 32 bits
# Value of the parameter `values` -> dtype name and torch dtype of that plane.
_VALUES: Mapping[str, tuple[str, torch.dtype]] = {
    "bf16": ("bf16", torch.bfloat16),
    "f16": ("f16", torch.float16),
    "f32": ("f32", torch.float32),
    "int8": ("i8", torch.int8),
}


class BitmapLayout(FormLayout):
    """w = the values in row-major order where bits are set, and 0 elsewhere.

    Planes: `bitmap` u8 [N, ceil(K / 8)] (bit k % 8 of byte k // 8, zero beyond K), `values`
    [nonzeros] and, with int8 values, `scales` bf16 [N], which multiply their rows. Parameters:
    `nonzeros` and `values`, the form of the values: "bf16", "f16", "f32" or "int8".

    On a GPU `matmul` rounds fp32 activations and f16 and f32 values to bf16; `dense` and `rows` are
    exact in float32 everywhere.
    """

    name: ClassVar[str] = "bitmap"

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        n, k = check_matrix_shape(cls.name, shape)
        check_floating(cls.name, dtype)
        nonzeros, values = _check_params(params, n * k)
        specs = {
            "bitmap": PlaneSpec("u8", (n, -(-k // 8))),
            "values": PlaneSpec(_VALUES[values][0], (nonzeros,)),
        }
        return specs | {"scales": PlaneSpec("bf16", (n,))} if values == "int8" else specs

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
        nonzeros, values = _check_params(params, n * k)
        dtypes = {"bitmap": torch.uint8, "values": _VALUES[values][1], "scales": torch.bfloat16}
        check_planes(
            cls.name, planes, {name: (dtypes[name], spec.shape) for name, spec in specs.items()}
        )
        _check_bitmap(planes["bitmap"], k, nonzeros)
        on_device = {name: plane.to(device) for name, plane in planes.items()}
        canonical = Planes(
            k=k,
            bitmap=on_device["bitmap"],
            values=on_device["values"],
            scales=on_device.get("scales"),
        )
        return cls(_pack(canonical), (n, k), dtype, canonical.bitmap.device)

    @classmethod
    def rows_of_planes(
        cls, planes: Mapping[str, Tensor], start: int, stop: int, params: Params
    ) -> Mapping[str, Tensor]:
        cut = dict(super().rows_of_planes(planes, start, stop, params))
        before = int(bit_counts(planes["bitmap"][:start]).sum(dtype=torch.int64))
        count = int(bit_counts(cut["bitmap"]).sum(dtype=torch.int64))
        return {**cut, "values": planes["values"][before : before + count]}

    @classmethod
    def params_of_planes(cls, planes: Mapping[str, Tensor], params: Params) -> Params:
        return {**params, "nonzeros": planes["values"].numel()}


def _pack(planes: Planes) -> Form:
    return (BytesForm if planes.bitmap.device.type == "cpu" else WordsForm).pack(planes)


def _check_params(params: Params, weights: int) -> tuple[int, str]:
    """(nonzeros, form of the values) of validated parameters."""
    if params.keys() != {"nonzeros", "values"}:
        raise LayoutError(
            f"layout `bitmap` takes the parameters `nonzeros` and `values`, got {sorted(params)}"
        )
    nonzeros, values = params["nonzeros"], params["values"]
    whole = isinstance(nonzeros, int) and not isinstance(nonzeros, bool)
    most = min(weights, MAX_NONZEROS)
    if not isinstance(nonzeros, int) or not whole or not 0 <= nonzeros <= most:
        raise LayoutError(
            f"`nonzeros` of layout `bitmap` must be an integer from 0 to {most}, got {nonzeros!r}"
        )
    if not isinstance(values, str) or values not in _VALUES:
        raise LayoutError(
            f"`values` of layout `bitmap` must be one of {', '.join(_VALUES)}, got {values!r}"
        )
    return nonzeros, values


def _check_bitmap(bitmap: Tensor, k: int, nonzeros: int) -> None:
    """Raises LayoutError unless exactly `nonzeros` bits are set, none of them beyond column k."""
    if k % 8 and int(bitmap[:, -1].max()) >> (k % 8):
        raise LayoutError(f"`bitmap.bitmap` has bits set beyond its last column, {k - 1}")
    ones = int(bit_counts(bitmap).sum(dtype=torch.int64))
    if ones != nonzeros:
        raise LayoutError(f"`bitmap.bitmap` has {ones} bits set, expected {nonzeros} (`nonzeros`)")
