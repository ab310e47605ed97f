"""The definition of w8a8: activations rounded to signed bytes token by token, integer sums.

The sums are exact, so every path gives the same ones, whatever the batch, the device or the order
of adding up: only what float32 arithmetic follows could differ, and all paths do the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.errors import LayoutError

TOP = 127  # the largest magnitude of an activation's code
# A token whose activations are all smaller than this counts as zero: 127 / absmax must be finite.
SMALLEST = 2.0**-100
# |sum| <= 127 * 128 * K must fit an int32.
MAX_COLUMNS = (2**31 - 1) // (TOP * 128)


def quantize_tokens(x: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Rounds each row of x [M, K], fp32 or bf16, to signed bytes of its own symmetric scale.

    Returns:
        Codes int8 [M, columns], zero beyond K, and scales float32 [M]: x is about codes * scales.
    """
    wide = x.to(torch.float32)
    peak = wide.abs().amax(1) if x.shape[1] else wide.new_zeros(x.shape[0])
    peak = torch.where(peak < SMALLEST, 0.0, peak)  # NaN stays
    # `TOP / peak` would multiply by a rounded reciprocal.
    inverse = torch.where(peak > 0, torch.full_like(peak, TOP).div_(peak), 0.0)
    codes = torch.zeros(x.shape[0], columns, dtype=torch.int8, device=x.device)
    codes[:, : x.shape[1]] = (wide * inverse[:, None]).round()
    return codes, peak * (1 / TOP)


def scale_sums(sums: Tensor, x_scales: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """The product, float32 [M, N]: from sums [M, N], token scales [M] and row scales [N]."""
    y = sums.to(torch.float32) * x_scales[:, None] * scales.to(torch.float32)
    return y if bias is None else y + bias.to(torch.float32)


def matmul(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiplies x [M, K] by codes int8 [N, Kp] * scales [N], adds bias [N] -> float32 [M, N]."""
    x_codes, x_scales = quantize_tokens(x, codes.shape[1])
    sums = x_codes.to(torch.int64) @ codes.to(torch.int64).T
    return scale_sums(sums, x_scales, scales, bias)


def check_columns(k: int) -> None:
    """Raises LayoutError if an integer sum over k columns could overflow."""
    if k > MAX_COLUMNS:
        raise LayoutError(
            f"`int8` activations multiply weights of at most {MAX_COLUMNS} columns, whose sums "
            f"fit 32 bits; got {k}: convert without `activations`"
        )
