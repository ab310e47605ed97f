"""The `float12` layout: bf16, bit for bit, in 12 bits a weight while resident on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from tersor.kernels.checks import check_matrix_shape, check_planes
from tersor.kernels.dense import DenseLayout
from tersor.kernels.errors import LayoutError
from tersor.kernels.float12.packing import join_parts, pack, pack_parts
from tersor.kernels.float12.words import WordsForm
from tersor.kernels.layout import Layout, Params, PlaneSpec


class Float12Layout(Layout):
    """A bf16 matrix: plane `values` bf16 [N, K], as `dense` has it, and no parameters.

    Every bit pattern comes back from `dense()` and `rows`, and products are those of the exact
    weights. On a CPU, and on a GPU where too many weights are escapes, the matrix is held as
    `dense` holds it.

    On a GPU `matmul` rounds fp32 activations to bf16 (`dense` does not), and one that is not
    finite makes NaN of its row of results.
    """

    name: ClassVar[str] = "float12"

    def __init__(
        self, form: DenseLayout | WordsForm, shape: tuple[int, int], device: torch.device
    ) -> None:
        self.shape: tuple[int, int] = shape
        self.dtype = torch.bfloat16
        self.device = device
        self._form = form

    @classmethod
    def plane_specs(
        cls, shape: tuple[int, ...], dtype: torch.dtype, params: Params
    ) -> Mapping[str, PlaneSpec]:
        n, k = check_matrix_shape(cls.name, shape)
        if dtype != torch.bfloat16:
            raise LayoutError(f"layout `float12` holds bfloat16 weights, got {dtype}; use `dense`")
        if params:
            raise LayoutError(f"layout `float12` takes no parameters, got {sorted(params)}")
        return {"values": PlaneSpec("bf16", (n, k))}

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
        check_planes(cls.name, planes, {"values": (torch.bfloat16, shape)})
        values = planes["values"].to(device)
        packed = None if values.device.type == "cpu" else pack(values)
        return cls._over(values) if packed is None else cls._of(WordsForm(packed))

    @classmethod
    def from_parts(cls, exponents: Tensor, mantissas: Tensor) -> Self:
        """Packs a weight whose bytes come apart, as `pack_parts` takes them, on their device.

        Raises:
            LayoutError: the parts are not two matrices of bytes of one shape, on one device.
        """
        packed = None if exponents.device.type == "cpu" else pack_parts(exponents, mantissas)
        if packed is None:
            return cls._over(join_parts(exponents, mantissas))
        return cls._of(WordsForm(packed))

    def prepare(self, activations: torch.dtype) -> None:
        self._form.prepare(activations)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self._form.dense(dtype)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._form.matmul(x, bias)

    def partials(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._form.partials(x, bias)

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return self._form.gated(x, bias, activation)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        return self._form.rows(indices, dtype)

    @property
    def resident_bytes(self) -> int:
        return self._form.resident_bytes

    @classmethod
    def _over(cls, values: Tensor) -> Self:
        """Holds bf16 values [N, K] as they are."""
        n, k = values.shape
        planes = {"values": values}
        form = DenseLayout.from_planes(planes, (n, k), values.dtype, {}, values.device)
        return cls(form, (n, k), values.device)

    @classmethod
    def _of(cls, form: WordsForm) -> Self:
        words = form.packed.words
        return cls(form, (words.shape[0], form.packed.k), words.device)
