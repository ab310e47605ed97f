"""What a matmul leaves behind: the product, its partial sums, or a gated activation of it."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from tersor.kernels.errors import LayoutError
from tersor.kernels.gated import gated


class Finish(StrEnum):
    """How the product y = x @ weight.T + bias, [M, N], is handed on."""

    SUM = "sum"  # y in x.dtype
    PARTIALS = "partials"  # [S, M, N] that adds up to y: float32, or x.dtype where S is 1
    SILU = "silu"  # act(y[:, : N / 2]) * y[:, N / 2 :] in x.dtype, as are the next two
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"

    @property
    def gate(self) -> str:
        """The activation of a gated finish, "" of the others."""
        return "" if self in {Finish.SUM, Finish.PARTIALS} else str(self)


def finish_of(name: str, n: int) -> Finish:
    """The finish called `name`, for a weight of n rows.

    Raises:
        LayoutError: there is none, or it needs an even n.
    """
    try:
        finish = Finish(name)
    except ValueError:
        known = ", ".join(Finish)
        raise LayoutError(f"`finish` is {name!r}, expected one of {known}") from None
    if finish.gate and n % 2:
        raise LayoutError(f"finish {name!r} halves the rows of a weight, which has {n}")
    return finish


def finished_shape(finish: Finish, m: int, n: int, splits: int) -> tuple[int, ...]:
    """Shape of what `finish` returns."""
    if finish is Finish.PARTIALS:
        return (splits, m, n)
    return (m, n // 2) if finish.gate else (m, n)


def finish_product(y: Tensor, finish: Finish) -> Tensor:
    """Finishes a whole product y [M, N]."""
    if finish is Finish.PARTIALS:
        return y.unsqueeze(0)
    return gated(y, finish.gate) if finish.gate else y


def finished_like(x: Tensor, finish: Finish, n: int, splits: int) -> Tensor:
    """An empty tensor as a matmul of x [M, K] returns it: for fake implementations."""
    wide = finish is Finish.PARTIALS and splits > 1
    dtype = torch.float32 if wide else x.dtype
    return x.new_empty(finished_shape(finish, x.shape[0], n, splits), dtype=dtype)
