"""The `fp8` layout: one e4m3 number per weight and a scale per row or block."""

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
from tersor.kernels.fp8.decode import LOWERED, dequantize, widen
from tersor.kernels.fp8.ops import fp8_matmul
from tersor.kernels.fp8.packing import check_codes, pack
from tersor.kernels.fp8.params import Fp8Params
from tersor.kernels.fp8.reference import BLOCK
from tersor.kernels.gemv.finish import Finish
from tersor.kernels.layout import Params, PlaneSpec
from tersor.kernels.matrix import MatrixLayout


class Fp8Layout(MatrixLayout):
    """w = codes * scale: planes `codes` f8_e4m3 [N, K] and `scales` f32.

    Parameters: `block`, 0 (`scales` is [N]) or 128 (a scale for 128 x 128 weights, `scales` is
    [ceil(N / 128), ceil(K / 128)]), and optionally `activations` = "fp8" (`matmul` rounds
    activations to e4m3, token by token, see reference.py). Codes must be finite.

    On a GPU `matmul` rounds fp32 activations to bf16; on the CPU all products are float32.
    """

    name: ClassVar[str] = "fp8"

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        fp8_activations: bool,
    ) -> None:
        self.shape: tuple[int, int] = shape
        self.dtype = dtype
        self.device = codes.device
        self._codes = codes  # uint8 [N, Kp]
        self._scales = scales  # float32 [N] or [ceil(N / 128), ceil(K / 128)]
        self._fp8_activations = fp8_activations

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        n, k = check_matrix_shape(cls.name, shape)
        check_floating(cls.name, dtype)
        scales = Fp8Params.parse(params).scales(n, k)
        return {"codes": PlaneSpec("f8_e4m3", (n, k)), "scales": PlaneSpec("f32", scales)}

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
        parsed = Fp8Params.parse(params)
        dtypes = {"codes": torch.float8_e4m3fn, "scales": torch.float32}
        check_planes(
            cls.name, planes, {name: (dtypes[name], spec.shape) for name, spec in specs.items()}
        )
        check_codes(planes["codes"])
        return cls(
            pack(planes["codes"].to(device), blocks=parsed.blocks),
            planes["scales"].to(device).contiguous(),
            (n, k),
            dtype,
            fp8_activations=parsed.fp8_activations,
        )

    @classmethod
    def rows_of_planes(
        cls, planes: Mapping[str, Tensor], start: int, stop: int, params: Params
    ) -> Mapping[str, Tensor]:
        cut = super().rows_of_planes(planes, start, stop, params)
        if not params.get("block"):
            return cut
        return {**cut, "scales": planes["scales"][start // BLOCK : -(-stop // BLOCK)]}

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return dequantize(self._codes, self._scales, self.shape[1]).to(dtype or self.dtype)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        check_indices(indices, self.device)
        k = self.shape[1]
        wide = widen(self._codes[indices, :k]) * LOWERED
        if self._scales.dim() == 1:
            return (wide * self._scales[indices][..., None]).to(dtype)
        scales = self._scales[indices // BLOCK].repeat_interleave(BLOCK, -1)[..., :k]
        return (wide * scales).to(dtype)

    @property
    def resident_bytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes

    def _multiply(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        return fp8_matmul(
            x,
            self._codes,
            self._scales,
            bias,
            finish,
            fp8_activations=self._fp8_activations,
        )
