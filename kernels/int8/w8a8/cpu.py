"""CPU path of w8a8: exact integer sums, by torch's int8 product or by float32 ones."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.int8.w8a8.reference import quantize_tokens, scale_sums

# Float32 adds integers exactly up to here: 1024 products of two signed bytes, in any case.
EXACT = 2.0**24
EXACT_COLUMNS = 1024
# Rows of codes widened at a time: 256 x 4096 in fp32 is 4 MiB, which stays in cache for the matmul.
WIDENED_ROWS = 256


@cache
def has_fast_int8() -> bool:
    """Whether `torch._int_mm` has instructions of its own here (AVX-512 VNNI).

    Without them it is a plain loop: 12 ms for one token and 4096x4096 where float32 takes 3, 418
    and 24 for 32 tokens (AVX2, one thread). With them, 28672x4096: 3.3 ms for one token, where the
    packed w8a16 kernel takes 5.2, and 19 for 16, where that takes 24.
    """
    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def matmul(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplies x [M, K] fp32 or bf16 by codes int8 [N, Kp] * scales bf16 [N] -> [M, N]."""
    x_codes, x_scales = quantize_tokens(x, codes.shape[1])
    product = _integer_product if has_fast_int8() else widened_product
    return scale_sums(product(x_codes, codes), x_scales, scales, bias).to(x.dtype)


def _integer_product(x_codes: Tensor, codes: Tensor) -> Tensor:
    return torch._int_mm(x_codes, codes.T)  # noqa: SLF001  # the only way to it


def widened_product(x_codes: Tensor, codes: Tensor) -> Tensor:
    """x_codes int8 [M, Kp] @ codes int8 [N, Kp].T -> int32 [M, N], through exact float32 sums."""
    sums = torch.empty(x_codes.shape[0], codes.shape[0], dtype=torch.int32)
    x = x_codes.to(torch.float32)
    # Of 4096 activations most are small: they need no cut, which is 3.1 ms instead of 5.5 for one.
    fits = bool((x.abs().sum(1) * 128 < EXACT).all())
    columns = max(1, x.shape[1]) if fits else EXACT_COLUMNS
    wide_x = x.split(columns, 1)
    # One buffer for all blocks: page faults of a new one each may cost ten times the conversion.
    buffer = torch.empty(WIDENED_ROWS, codes.shape[1], dtype=torch.float32)
    for start in range(0, codes.shape[0], WIDENED_ROWS):
        narrow = codes[start : start + WIDENED_ROWS]
        block = buffer[: narrow.shape[0]].copy_(narrow).split(columns, 1)
        total = sums[:, start : start + WIDENED_ROWS]
        total.copy_(F.linear(wide_x[0], block[0]))
        for x_part, part in zip(wide_x[1:], block[1:], strict=True):
            total += F.linear(x_part, part).to(torch.int32)
    return sums
