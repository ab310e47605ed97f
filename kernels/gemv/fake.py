"""The fake implementation that the operators of all skinny products share."""

from __future__ import annotations

from torch import Tensor

from tersor.kernels.gemv.config import GEMM_MIN_ROWS, partial_count
from tersor.kernels.gemv.finish import finish_of, finished_like


def fake_product(x: Tensor, kernel: str, finish: str, *, n: int, steps: int) -> Tensor:
    """An empty tensor as the product of x [M, K] and a weight of n rows is returned.

    `kernel` and `steps` are those of its `Product`: they decide how many partials there are.
    """
    m, k = x.shape
    splits = 1
    if x.device.type != "cpu" and m < GEMM_MIN_ROWS:
        # Sizes of a weight are never symbolic; as integers they can be looked up.
        splits = partial_count(kernel, n=int(n), k=int(k), steps=int(steps), device=x.device)
    return finished_like(x, finish_of(finish, n), n, splits)
