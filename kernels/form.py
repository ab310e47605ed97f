"""Forms in which one layout can be resident, and the layout that multiplies through its form."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tersor.kernels.checks import check_indices
from tersor.kernels.gemv.finish import Finish
from tersor.kernels.matrix import MatrixLayout


class Form(Protocol):
    """A packed weight on its device. Immutable."""

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        """Multiplies x [M, K] contiguous, fp32 or bf16: what `finish` says."""
        ...

    def dequantize(self) -> Tensor:
        """The weight in float32 [N, K]."""
        ...

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the weight: indices int64 [T] -> float32 [T, K]."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes resident."""
        ...


class FormLayout(MatrixLayout):
    """A layout that leaves the work to its form."""

    def __init__(
        self, form: Form, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape: tuple[int, int] = shape
        self.dtype = dtype
        self.device = device
        self._form = form

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self._form.dequantize().to(dtype or self.dtype)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        check_indices(indices, self.device)
        return self._form.rows(indices.reshape(-1)).to(dtype).view(*indices.shape, self.shape[1])

    @property
    def resident_bytes(self) -> int:
        return self._form.nbytes

    def _multiply(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        return self._form.matmul(x, bias, finish)
