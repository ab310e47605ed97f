"""A form of a weight whose kernel knows no outliers, and the outliers beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.cpu import finished
from tersor.kernels.form import Form
from tersor.kernels.gemv.finish import Finish, finish_product
from tersor.kernels.outliers.rows import RowOutliers, add_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierForm:
    """`inner` plus `outliers`: two products, added in float32."""

    inner: Form
    outliers: RowOutliers

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        y = self.inner.matmul(x, None, Finish.SUM).to(torch.float32)
        y = y + self.outliers.product(x)
        return finish_product(finished(y, bias, x.dtype), finish)

    def dequantize(self) -> Tensor:
        dense = self.inner.dequantize()
        rows = torch.arange(dense.shape[0], device=dense.device)
        return add_rows(dense, self.outliers.lookup(rows))

    def rows(self, indices: Tensor) -> Tensor:
        return add_rows(self.inner.rows(indices), self.outliers.lookup(indices))

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes + self.outliers.nbytes
