"""What the CPU paths share: which dtype multiplies fastest here, and a linear that uses it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


@cache
def has_native_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX, or Arm's BF16).

    Without it `F.linear` in bf16 costs 3-4 times fp32 for 32 rows and more (4096x4096).
    """
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


def gemm_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a decoded weight should multiply `x` on this CPU."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 and has_native_bf16() else torch.float32


def matmul_dtype(x: torch.dtype, weight: torch.dtype) -> torch.dtype:
    """The dtype a dense weight multiplies in: the wider of both; one-byte weights widen to x's."""
    return x if weight.itemsize == 1 else torch.promote_types(x, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes x @ weight.T + bias in the wider of both dtypes, returned in x.dtype."""
    if x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype):
        return F.linear(x, weight, bias)
    dtype = matmul_dtype(x.dtype, weight.dtype)
    y = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return y.to(x.dtype)


def padded_columns(x: Tensor, columns: int) -> Tensor:
    """Appends zero columns to x [M, K] up to `columns`; only makes it contiguous if it has them."""
    missing = columns - x.shape[1]
    return F.pad(x, (0, missing)) if missing else x.contiguous()


def finished(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Adds bias to y [M, N] in fp32, so that it is rounded once, and returns it in `dtype`."""
    return (y if bias is None else y.to(torch.float32) + bias).to(dtype)
