"""`tersor::fp8_matmul`, visible to torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.fp8 import cpu
from tersor.kernels.fp8.packing import BK, kernel_name
from tersor.kernels.gemv.fake import fake_product
from tersor.kernels.gemv.finish import Finish, finish_of, finish_product

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "fp8_matmul(Tensor x, Tensor codes, Tensor scales, bool fp8_activations, Tensor? bias=None, "
    "str finish='sum') -> Tensor"
)


@torch.library.impl(LIBRARY, "fp8_matmul", "CPU")
def _matmul_cpu(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    fp8_activations: bool,  # noqa: FBT001  # operators have no keyword-only arguments here
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    y = cpu.matmul(x, codes, scales, bias, fp8_activations=fp8_activations)
    return finish_product(y, finish_of(finish, codes.shape[0]))


@torch.library.impl(LIBRARY, "fp8_matmul", "CUDA")
def _matmul_cuda(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    fp8_activations: bool,  # noqa: FBT001
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    from tersor.kernels.fp8 import triton  # imports triton, which a CPU need not have

    kind = finish_of(finish, codes.shape[0])
    return triton.matmul(x, codes, scales, bias, kind, fp8_activations=fp8_activations)


def _matmul_fake(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    fp8_activations: bool,  # noqa: FBT001
    bias: Tensor | None = None,
    finish: str = "sum",
) -> Tensor:
    del fp8_activations, bias  # the shape does not depend on them
    n, width = codes.shape
    name = kernel_name(blocks=scales.dim() == 2)
    return fake_product(x, name, finish, n=n, steps=-(-width // BK))


torch.library.register_fake("tersor::fp8_matmul", _matmul_fake, lib=LIBRARY)


def fp8_matmul(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    finish: Finish = Finish.SUM,
    *,
    fp8_activations: bool = False,
) -> Tensor:
    """Computes x [M, K] @ weight.T + bias, in x.dtype.

    Args:
        x: [M, K] contiguous, fp32 or bf16; fp32 is rounded to bf16 on a GPU.
        codes: e4m3 as uint8 [N, Kp] contiguous, as `pack` makes them, without NaN.
        scales: float32 [N], or [ceil(N / 128), ceil(K / 128)].
        bias: [N] or None.
        finish: what is returned.
        fp8_activations: round x first, token by token (`reference.round_tokens`).

    Returns:
        [M, N] in x.dtype, or what `finish` says.
    """
    y: Tensor = torch.ops.tersor.fp8_matmul(x, codes, scales, fp8_activations, bias, finish)
    return y
