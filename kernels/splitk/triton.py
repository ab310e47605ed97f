"""Adds the partial results of a split-K matmul.

Partials are summed in the order of their K ranges, in float32, by one program per output: unlike
with atomics the result has the same bits in every run, and nothing has to be zeroed first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import check_tensor
from tersor.kernels.errors import LayoutError
from tersor.kernels.splitk.config import MAX_REGISTERS

BLOCK = 1024


@triton.jit
def splitk_sum_kernel(
    partials_ptr,  # float32 [splits, size]
    bias_ptr,  # [n], read if HAS_BIAS
    out_ptr,  # [size]
    size,
    n,
    splits,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[i] = sum over s of partials[s, i] (+ bias[i mod n])."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    offset = tl.zeros((), dtype=tl.int64)
    for _ in range(splits):
        total += tl.load(partials_ptr + offset + index, mask=inside, other=0.0)
        offset += size
    if HAS_BIAS:
        total += tl.load(bias_ptr + index % n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + index, total.to(out_ptr.dtype.element_ty), mask=inside)


def splitk_sum(partials: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Writes the sum of `partials` over its first dimension, plus bias, to `out`.

    Args:
        partials: float32 [splits, M, N] contiguous.
        bias: [N] contiguous, or None.
        out: [M, N] contiguous, fp32 or bf16.

    Raises:
        LayoutError: an argument has another shape, dtype or device, or is not contiguous.
    """
    check_tensor("partials", partials, shape=(None, None, None), dtypes=(torch.float32,))
    splits, m, n = partials.shape
    check_tensor("out", out, shape=(m, n), device=partials.device)
    if bias is not None:
        check_tensor("bias", bias, shape=(n,), device=partials.device)
    splitk_sum_kernel[(triton.cdiv(m * n, BLOCK),)](
        partials,
        out if bias is None else bias,
        out,
        m * n,
        n,
        splits,
        HAS_BIAS=bias is not None,
        BLOCK=BLOCK,
        num_warps=4,
    )


def compute_dtype(device: torch.device) -> tl.dtype:
    """The dtype of a kernel's products on `device`.

    bf16 on a GPU. On a CPU only the interpreter runs kernels, and its bf16 arithmetic is wrong
    without saying so: fp32 there.

    Raises:
        LayoutError: the operands are on a CPU and the interpreter is off.
    """
    check_device(device)
    return tl.float32 if device.type == "cpu" else tl.bfloat16


def check_device(device: torch.device) -> None:
    """Raises LayoutError if no kernel can run: operands on a CPU, and the interpreter is off."""
    if device.type == "cpu" and not triton.knobs.runtime.interpret:
        raise LayoutError("Triton kernels need operands on a GPU, got cpu; use the CPU path there")


def register_options(device: torch.device) -> dict[str, int]:
    """Launch options that bound registers: NVIDIA's alone (see MAX_REGISTERS)."""
    return {"maxnreg": MAX_REGISTERS} if has_inline_asm(device) else {}


def has_inline_asm(device: torch.device) -> bool:
    """Whether kernels on `device` are compiled by NVIDIA's tools."""
    return device.type == "cuda" and torch.version.hip is None
