"""`tersor::int8_matmul_w8a8`, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.gemv.finish import Finish, finish_of, finish_product, finished_like
from tersor.kernels.int8.w8a8 import cpu

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "int8_matmul_w8a8(Tensor x, Tensor codes, Tensor scales, Tensor? bias=None, "
    "str finish='sum') -> Tensor"
)


@torch.library.impl(LIBRARY, "int8_matmul_w8a8", "CPU")
def _matmul_cpu(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, finish: str = "sum"
) -> Tensor:
    return finish_product(cpu.matmul(x, codes, scales, bias), finish_of(finish, codes.shape[0]))


@torch.library.impl(LIBRARY, "int8_matmul_w8a8", "CUDA")
def _matmul_cuda(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, finish: str = "sum"
) -> Tensor:
    from tersor.kernels.int8.w8a8 import triton  # imports triton, which a CPU need not have

    return triton.matmul(x, codes, scales, bias, finish_of(finish, codes.shape[0]))


def _matmul_fake(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, finish: str = "sum"
) -> Tensor:
    del scales, bias  # the shape does not depend on them
    n = codes.shape[0]
    return finished_like(x, finish_of(finish, n), n, splits=1)


torch.library.register_fake("tersor::int8_matmul_w8a8", _matmul_fake, lib=LIBRARY)


def int8_matmul_w8a8(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    finish: Finish = Finish.SUM,
) -> Tensor:
    """Computes x, rounded to signed bytes a token, @ (codes * scales[:, None]).T + bias.

    The arguments are those of the launcher (triton.py); the result is in x.dtype.
    """
    y: Tensor = torch.ops.tersor.int8_matmul_w8a8(x, codes, scales, bias, finish)
    return y
