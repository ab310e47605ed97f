"""The `int8` layout: one signed byte per weight and one step per row, or for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from tersor.kernels.checks import (
    check_floating,
    check_indices,
    check_matrix_shape,
    check_planes,
)
from tersor.kernels.gemv.finish import Finish
from tersor.kernels.int8 import reference
from tersor.kernels.int8.ops import int8_matmul
from tersor.kernels.int8.packing import pack
from tersor.kernels.int8.params import Int8Params
from tersor.kernels.int8.w8a8.ops import int8_matmul_w8a8
from tersor.kernels.layout import Params, PlaneSpec
from tersor.kernels.matrix import MatrixLayout


class Int8Layout(MatrixLayout):
    """w = codes * scales: planes `codes` i8 [N, K] and `scales` bf16 [N].

    Parameters, both optional: `step` = "tensor" (`scales` is [1]: one for the whole weight) and
    `activations` = "int8" (`matmul` rounds activations to signed bytes, token by token, see
    w8a8/reference.py; without it to bf16).

    On the CPU results for up to `packed_max_rows` (crossover.py) rows have the same bits whatever
    the number of rows; above it another algorithm takes over. With `activations` = "int8" they
    always do.
    """

    name: ClassVar[str] = "int8"

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        int8_activations: bool,
    ) -> None:
        self.shape: tuple[int, int] = shape
        self.dtype = dtype
        self.device = codes.device
        self._codes = codes  # [N, Kp]
        self._scales = scales  # [N]
        self._operator = int8_matmul_w8a8 if int8_activations else int8_matmul

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        n, k = check_matrix_shape(cls.name, shape)
        check_floating(cls.name, dtype)
        scales = Int8Params.parse(params, k).scales(n)
        return {"codes": PlaneSpec("i8", (n, k)), "scales": PlaneSpec("bf16", (scales,))}

    @classmethod
    def from_planes(
        cls,
        planes: Mapping[str, Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        params: Params,
        device: torch.device,
    ) -> Self:
        cls.plane_specs(shape, dtype, params)
        n, k = check_matrix_shape(cls.name, shape)
        parsed = Int8Params.parse(params, k)
        check_planes(
            cls.name,
            planes,
            {"codes": (torch.int8, (n, k)), "scales": (torch.bfloat16, (parsed.scales(n),))},
        )
        codes = pack(planes["codes"].to(device))
        scales = planes["scales"].to(device).expand(n).contiguous()
        return cls(codes, scales, (n, k), dtype, int8_activations=parsed.int8_activations)

    @classmethod
    def rows_of_planes(
        cls, planes: Mapping[str, Tensor], start: int, stop: int, params: Params
    ) -> Mapping[str, Tensor]:
        cut = super().rows_of_planes(planes, start, stop, params)
        return {**cut, "scales": planes["scales"]} if "step" in params else cut

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return reference.dequantize(self._codes[:, : self.shape[1]], self._scales).to(
            dtype or self.dtype
        )

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        check_indices(indices, self.device)
        codes = self._codes[indices, : self.shape[1]].to(torch.float32)
        return (codes * self._scales[indices].to(torch.float32)[..., None]).to(dtype)

    @property
    def resident_bytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes

    def _multiply(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        return self._operator(x, self._codes, self._scales, bias, finish)
