"""What every layout of matrices shares: checked operands, and one product that finishes vary."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from tersor.kernels.checks import as_rows, check_operand, shaped_like
from tersor.kernels.gemv.finish import Finish, finish_of
from tersor.kernels.layout import Layout


class MatrixLayout(Layout):
    """A weight [N, K] whose products differ only in their finish."""

    shape: tuple[int, int]

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return shaped_like(self._checked(x, bias, Finish.SUM), x)

    def partials(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._checked(x, bias, Finish.PARTIALS)

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return shaped_like(self._checked(x, bias, finish_of(activation, self.shape[0])), x)

    @abstractmethod
    def _multiply(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        """Multiplies x [M, K] contiguous, fp32 or bf16, on `device`: what `finish` says."""

    def _checked(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        n, k = self.shape
        check_operand(x, bias, n=n, k=k, device=self.device)
        return self._multiply(as_rows(x), bias, finish)
