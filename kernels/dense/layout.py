"""The `dense` layout: the weight as it is, of any rank and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import ClassVar, Self

import torch
from torch import Tensor

from tersor.kernels.checks import check_indices, check_operand, check_planes
from tersor.kernels.cpu import linear, matmul_dtype
from tersor.kernels.errors import LayoutError
from tersor.kernels.layout import Layout, Params, PlaneSpec

PLANE_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8_e4m3",
    torch.float8_e5m2: "f8_e5m2",
    torch.uint64: "u64",
    torch.uint32: "u32",
    torch.uint16: "u16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


class DenseLayout(Layout):
    """A weight held as one plane `values`.

    `matmul` computes in the wider of the weight's and x's dtype. A matrix narrower than x is
    widened once, at the first such matmul (or by `prepare`), and replaces the narrow one; so does
    `prepare` with a vector, which every pass would otherwise widen again. On a CPU serving fp32
    activations a bf16 weight then takes twice its bytes, which `resident_bytes` shows from that
    moment. Widening is exact, and `dense()` narrows back to the original bits.
    """

    name: ClassVar[str] = "dense"

    def __init__(self, values: Tensor) -> None:
        self.shape = tuple(values.shape)
        self.dtype = values.dtype
        self.device = values.device
        self._values = values
        self._widening = Lock()

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        if params:
            raise LayoutError(f"layout `dense` takes no parameters, got {sorted(params)}")
        if dtype not in PLANE_DTYPES:
            raise LayoutError(f"layout `dense` has no plane of {dtype}")
        return {"values": PlaneSpec(dtype=PLANE_DTYPES[dtype], shape=shape)}

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
        check_planes(cls.name, planes, {"values": (dtype, shape)})
        return cls(planes["values"].to(device).contiguous())

    def prepare(self, activations: torch.dtype) -> None:
        if len(self.shape) in {1, 2}:
            self._wide_enough_for(activations)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        values, dtype = self._values, dtype or self.dtype
        return values if values.dtype == dtype else values.to(dtype)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(self.shape) != 2:
            raise LayoutError(
                f"matmul needs a weight [N, K], this one has shape {list(self.shape)}"
            )
        check_operand(x, bias, n=self.shape[0], k=self.shape[1], device=self.device)
        return linear(x, self._wide_enough_for(x.dtype), bias)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        if len(self.shape) != 2:
            raise LayoutError(f"rows needs a weight [N, K], this one has shape {list(self.shape)}")
        check_indices(indices, self.device)
        return self._values[indices].to(dtype)

    @property
    def resident_bytes(self) -> int:
        return self._values.nbytes

    def _wide_enough_for(self, activations: torch.dtype) -> Tensor:
        values = self._values
        if values.dtype == activations:
            return values
        wide = matmul_dtype(activations, values.dtype)
        if values.dtype == wide:
            return values
        with self._widening:  # two threads must not both hold a wide copy of a large matrix
            if self._values.dtype != wide:
                self._values = self._values.to(wide)
            return self._values
