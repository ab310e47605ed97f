"""CPU path of the `fp8` layout: codes widened block by block in cache, then a matmul."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.cpu import finished
from tersor.kernels.fp8.decode import LOWERED, Buffers, dequantize, widen
from tersor.kernels.fp8.reference import BLOCK, round_tokens

# Rows of codes widened at a time, whole blocks: 256 x 4096 in fp32 is 4 MiB, which stays in cache.
WIDENED_ROWS = 256


def matmul(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, *, fp8_activations: bool
) -> Tensor:
    """Multiplies x [M, K] fp32 or bf16 by codes uint8 [N, Kp] with their scales -> [M, N].

    Products are float32, so that only the order of adding up depends on M.
    """
    wide_x = (round_tokens(x) if fp8_activations else x).to(torch.float32)
    y = torch.empty(x.shape[0], codes.shape[0], dtype=torch.float32)
    buffers = Buffers.like(codes[:WIDENED_ROWS])
    per_row = scales.dim() == 1
    for start in range(0, codes.shape[0], WIDENED_ROWS):
        stop = start + WIDENED_ROWS
        if per_row:  # scales the product, which is smaller than the weight
            wide = widen(codes[start:stop], buffers)[:, : x.shape[1]]
        else:
            part = scales[start // BLOCK : stop // BLOCK]
            wide = dequantize(codes[start:stop], part, x.shape[1], buffers)
        y[:, start:stop] = F.linear(wide_x, wide)
    if per_row:
        y.mul_(scales * LOWERED)
    return finished(y, bias, x.dtype)
