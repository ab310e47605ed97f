"""CPU path of the `int8` layout.

Up to `packed_max_rows` (crossover.py) rows torch's packed kernel reads the codes as they are: a
quarter of the bytes of fp32, and each row's result has the same bits whatever the batch. Above it
the codes are widened once per call, block by block in cache, and an ordinary matmul amortizes that
over the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.cpu import finished, gemm_dtype, padded_columns
from tersor.kernels.crossover import Path, path_of

# Rows of codes widened at a time: 256 x 4096 in fp32 is 4 MiB, which stays in cache for the matmul.
WIDENED_ROWS = 256


def matmul(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplies x [M, K] fp32 or bf16 by codes int8 [N, Kp] * scales bf16 [N] -> [M, N]."""
    if path_of("int8", x.shape[0]) is Path.DECODED:
        return _widened_matmul(x, codes, scales, bias)
    y = torch._weight_int8pack_mm(  # noqa: SLF001  # the only way to it
        padded_columns(x.to(torch.bfloat16), codes.shape[1]), codes, scales
    )
    return finished(y, bias, x.dtype)


def _widened_matmul(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    dtype = gemm_dtype(x)
    wide_x = x.to(dtype)
    y = torch.empty(x.shape[0], codes.shape[0], dtype=torch.float32)
    # One buffer for all blocks: page faults of a new one each may cost ten times the conversion.
    buffer = torch.empty(WIDENED_ROWS, x.shape[1], dtype=dtype)
    for start in range(0, codes.shape[0], WIDENED_ROWS):
        block = codes[start : start + WIDENED_ROWS, : x.shape[1]]
        wide = buffer[: block.shape[0]].copy_(block)
        y[:, start : start + WIDENED_ROWS] = F.linear(wide_x, wide)
    return finished(y.mul_(scales), bias, x.dtype)
