"""`tersor::int8_matmul`, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.int8 import cpu

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define("int8_matmul(Tensor x, Tensor codes, Tensor scales, Tensor? bias=None) -> Tensor")


@torch.library.impl(LIBRARY, "int8_matmul", "CPU")
def _int8_matmul_cpu(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    return cpu.matmul(x, codes, scales, bias)


@torch.library.impl(LIBRARY, "int8_matmul", "CUDA")
def _int8_matmul_cuda(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    from tersor.kernels.int8 import triton  # imports triton, which a CPU need not have

    return triton.matmul(x, codes, scales, bias)


def _int8_matmul_fake(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    del scales, bias  # the shape does not depend on them
    return x.new_empty(x.shape[0], codes.shape[0])


torch.library.register_fake("tersor::int8_matmul", _int8_matmul_fake, lib=LIBRARY)


def int8_matmul(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x [M, K] @ (codes * scales[:, None]).T + bias, in x.dtype.

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16 (on a CPU up to
            PACKED_MAX_ROWS rows).
        codes: int8 [N, Kp] contiguous, zero columns beyond K; Kp as the device's `pack` makes it.
        scales: bf16 [N].
        bias: [N] or None.

    Returns:
        [M, N] in x.dtype.
    """
    y: Tensor = torch.ops.tersor.int8_matmul(x, codes, scales, bias)
    return y
