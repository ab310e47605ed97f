"""The `int4` layout: four bits per weight, a scale and perhaps a zero per group of columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from tersor.kernels.checks import (
    as_rows,
    check_floating,
    check_indices,
    check_matrix_shape,
    check_operand,
    check_planes,
    shaped_like,
)
from tersor.kernels.errors import LayoutError
from tersor.kernels.gemv.finish import Finish, finish_of
from tersor.kernels.int4 import cpu
from tersor.kernels.int4.form import Form, Planes
from tersor.kernels.int4.nibbles import NibblesForm
from tersor.kernels.int4.packing import block_words
from tersor.kernels.int4.tiles import TilesForm
from tersor.kernels.int4.words import WordsForm
from tersor.kernels.layout import Layout, Params, PlaneSpec


class Int4Layout(Layout):
    """w = (codes - zeros) * scales, with zeros = 8 where symmetric.

    Planes: `codes` u4 [N, K], `scales` bf16 [N, G] and, unless symmetric, `zeros` u4 [N, G], where
    G = ceil(K / group). Parameters: `group` (columns that share a scale; 0 is the whole row; the
    last group may be short) and `symmetric`.

    `matmul` rounds fp32 activations to bf16. On the CPU (8 - zero) * scale is held in bf16, so an
    asymmetric weight may differ from its definition by up to 1/64 of a step; results for up to
    `packed_max_rows` (crossover.py) rows have the same bits whatever the number of rows.
    """

    name: ClassVar[str] = "int4"

    def __init__(
        self, form: Form, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape: tuple[int, int] = shape
        self.dtype = dtype
        self.device = device
        self._form = form

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        n, k = check_matrix_shape(cls.name, shape)
        check_floating(cls.name, dtype)
        group, symmetric = _check_params(params, k)
        groups = -(-k // group)
        specs = {"codes": PlaneSpec("u4", (n, k)), "scales": PlaneSpec("bf16", (n, groups))}
        return specs if symmetric else specs | {"zeros": PlaneSpec("u4", (n, groups))}

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
        group, _ = _check_params(params, k)
        dtypes = {"u4": torch.uint8, "bf16": torch.bfloat16}
        check_planes(
            cls.name,
            planes,
            {name: (dtypes[spec.dtype], spec.shape) for name, spec in specs.items()},
        )
        for name in planes.keys() & {"codes", "zeros"}:
            if int(planes[name].max()) > 15:
                raise LayoutError(
                    f"`int4.{name}` holds {int(planes[name].max())}, expected symbols 0..15"
                )
        zeros = planes.get("zeros")
        canonical = Planes(
            codes=planes["codes"].to(device),
            scales=planes["scales"].to(device),
            zeros=None if zeros is None else zeros.to(device),
            group=group,
        )
        return cls(_pack(canonical), (n, k), dtype, canonical.codes.device)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self._form.dequantize().to(dtype or self.dtype)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, k = self.shape
        check_operand(x, bias, n=n, k=k, device=self.device)
        return shaped_like(self._form.matmul(as_rows(x), bias, Finish.SUM), x)

    def partials(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, k = self.shape
        check_operand(x, bias, n=n, k=k, device=self.device)
        return self._form.matmul(as_rows(x), bias, Finish.PARTIALS)

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        n, k = self.shape
        check_operand(x, bias, n=n, k=k, device=self.device)
        return shaped_like(self._form.matmul(as_rows(x), bias, finish_of(activation, n)), x)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        check_indices(indices, self.device)
        return self._form.rows(indices.reshape(-1)).to(dtype).view(*indices.shape, self.shape[1])

    @property
    def resident_bytes(self) -> int:
        return self._form.nbytes


def _pack(planes: Planes) -> Form:
    if planes.codes.device.type == "cpu":
        group = cpu.op_group(planes.group, planes.codes.shape[1])
        rows = cpu.tile_rows()
        if group is not None and rows is not None:
            return TilesForm.pack(planes, group, rows)
    else:
        bw = block_words(planes.group, planes.codes.shape[1])
        if bw is not None:
            return WordsForm.pack(planes, bw)
    return NibblesForm.pack(planes)


def _check_params(params: Params, k: int) -> tuple[int, bool]:
    """(columns per group, symmetric) of validated parameters."""
    if params.keys() != {"group", "symmetric"}:
        raise LayoutError(
            f"layout `int4` takes the parameters `group` and `symmetric`, got {sorted(params)}"
        )
    group, symmetric = params["group"], params["symmetric"]
    if not isinstance(group, int) or isinstance(group, bool) or group < 0:
        raise LayoutError(f"`group` of layout `int4` must be an integer >= 0, got {group!r}")
    if not isinstance(symmetric, bool):
        raise LayoutError(f"`symmetric` of layout `int4` must be a boolean, got {symmetric!r}")
    return group or k, symmetric
