"""Products of the `fp8` layout with many tokens on a GPU: by cuBLAS, through torch alone."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.cpu import finished
from tersor.kernels.fp8.reference import BLOCK, token_scales
from tersor.kernels.gemv.finish import Finish
from tersor.kernels.gemv.launch import decoded_product

# Compute capability from which tensor cores multiply e4m3.
FP8_CAPABILITY = (8, 9)
# Columns and rows of a weight that cuBLASLt's fp8 product takes: multiples of this.
FP8_MULTIPLE = 16


def can_scale_fp8(codes: Tensor, scales: Tensor) -> bool:
    """Whether `scaled_matmul` takes this weight: a scale per row, and a device that has it."""
    return (
        codes.device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(codes.device) >= FP8_CAPABILITY
        and scales.dim() == 1
        and codes.shape[0] % FP8_MULTIPLE == 0
    )


def scaled_matmul(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Rounds x [M, K] to e4m3 token by token and multiplies by codes uint8 [N, Kp] -> [M, N].

    The product has scales of 1 and float32 results; the scales of tokens and rows follow. Scales in
    the product itself are a feature of fewer devices.
    """
    powers = token_scales(x)
    narrow = torch.zeros(x.shape[0], codes.shape[1], dtype=torch.float8_e4m3fn, device=x.device)
    narrow[:, : x.shape[1]] = x.to(torch.float32) / powers
    one = torch.ones((), dtype=torch.float32, device=x.device)
    y = torch._scaled_mm(  # noqa: SLF001  # the only way to cuBLASLt's
        narrow,
        codes.view(torch.float8_e4m3fn).T,
        scale_a=one,
        scale_b=one,
        out_dtype=torch.float32,
    )
    return finished(y.mul_(powers).mul_(scales), bias, x.dtype)


def decoded_matmul(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, finish: Finish
) -> Tensor:
    """Multiplies x [M, K] by a weight of codes uint8 [N, Kp], decoded once, some rows at a time.

    Codes are exact in bf16, so scales of rows follow the product in float32; scales of blocks are
    applied before, and the weight is rounded to bf16.
    """
    n, k = codes.shape[0], x.shape[1]

    def exact(start: int, stop: int) -> Tensor:
        return codes[start:stop, :k].view(torch.float8_e4m3fn).to(torch.bfloat16)

    def scaled(start: int, stop: int) -> Tensor:
        part = codes[start:stop].view(torch.float8_e4m3fn).to(torch.bfloat16)
        blocks = part.view(stop - start, -1, BLOCK)
        row_blocks = torch.arange(start, stop, device=codes.device) // BLOCK
        torch.mul(blocks, scales[row_blocks][..., None], out=blocks)
        return part[:, :k]

    if scales.dim() == 1:
        return decoded_product(x, n, bias, finish, exact, scales)
    return decoded_product(x, n, bias, finish, scaled)
