"""`tersor::int8_matmul`, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.gemv.fake import fake_product
from tersor.kernels.gemv.finish import Finish, finish_of, finish_product
from tersor.kernels.int8 import cpu
from tersor.kernels.int8.packing import BK

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "int8_matmul(Tensor x, Tensor codes, Tensor scales, Tensor? bias=None, "
    "str finish='sum') -> Tensor"
)


@torch.library.impl(LIBRARY, "int8_matmul", "CPU")
def _int8_matmul_cpu(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, finish: str = "sum"
) -> Tensor:
    return finish_product(cpu.matmul(x, codes, scales, bias), finish_of(finish, codes.shape[0]))


@torch.library.impl(LIBRARY, "int8_matmul", "CUDA")
def _int8_matmul_cuda(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, finish: str = "sum"
) -> Tensor:
    from tersor.kernels.int8 import triton  # imports triton, which a CPU need not have

    return triton.matmul(x, codes, scales, bias, finish_of(finish, codes.shape[0]))


def _int8_matmul_fake(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, finish: str = "sum"
) -> Tensor:
    del scales, bias  # the shape does not depend on them
    n, width = codes.shape
    return fake_product(x, "int8", finish, n=n, steps=-(-width // BK))


torch.library.register_fake("tersor::int8_matmul", _int8_matmul_fake, lib=LIBRARY)


def int8_matmul(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    finish: Finish = Finish.SUM,
) -> Tensor:
    """Computes x [M, K] @ (codes * scales[:, None]).T + bias, in x.dtype.

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16 (on a CPU up to
            `packed_max_rows` (crossover.py) rows).
        codes: int8 [N, Kp] contiguous, zero columns beyond K; Kp as the device's `pack` makes it.
        scales: bf16 [N].
        bias: [N] or None.
        finish: what is returned.

    Returns:
        [M, N] in x.dtype, or what `finish` says.
    """
    y: Tensor = torch.ops.tersor.int8_matmul(x, codes, scales, bias, finish)
    return y
