"""The `int8` layout: one signed byte per weight and one step per row."""

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
from tersor.kernels.int8 import reference
from tersor.kernels.int8.ops import int8_matmul
from tersor.kernels.int8.packing import pack
from tersor.kernels.layout import Layout, Params, PlaneSpec


class Int8Layout(Layout):
    """w = codes * scales: planes `codes` i8 [N, K] and `scales` bf16 [N], no parameters.

    `matmul` rounds fp32 activations to bf16. On the CPU results for up to `packed_max_rows`
    (crossover.py) rows have the same bits whatever the number of rows; above it another algorithm
    takes over.
    """

    name: ClassVar[str] = "int8"

    def __init__(
        self, codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.shape: tuple[int, int] = shape
        self.dtype = dtype
        self.device = codes.device
        self._codes = codes  # [N, Kp]
        self._scales = scales  # [N]

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        n, k = check_matrix_shape(cls.name, shape)
        check_floating(cls.name, dtype)
        if params:
            raise LayoutError(f"layout `int8` takes no parameters, got {sorted(params)}")
        return {"codes": PlaneSpec("i8", (n, k)), "scales": PlaneSpec("bf16", (n,))}

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
        check_planes(
            cls.name, planes, {"codes": (torch.int8, (n, k)), "scales": (torch.bfloat16, (n,))}
        )
        codes = pack(planes["codes"].to(device))
        scales = planes["scales"].to(device).contiguous()
        return cls(codes, scales, (n, k), dtype)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return reference.dequantize(self._codes[:, : self.shape[1]], self._scales).to(
            dtype or self.dtype
        )

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, k = self.shape
        check_operand(x, bias, n=n, k=k, device=self.device)
        return shaped_like(int8_matmul(as_rows(x), self._codes, self._scales, bias), x)

    def partials(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, k = self.shape
        check_operand(x, bias, n=n, k=k, device=self.device)
        return int8_matmul(as_rows(x), self._codes, self._scales, bias, Finish.PARTIALS)

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        n, k = self.shape
        check_operand(x, bias, n=n, k=k, device=self.device)
        finish = finish_of(activation, n)
        return shaped_like(int8_matmul(as_rows(x), self._codes, self._scales, bias, finish), x)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        check_indices(indices, self.device)
        codes = self._codes[indices, : self.shape[1]].to(torch.float32)
        return (codes * self._scales[indices].to(torch.float32)[..., None]).to(dtype)

    @property
    def resident_bytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes
