"""How the codes of the `int4` layout lie in words on a GPU.

A word is 32 bits: eight codes. Columns go in blocks of 8 * BW; in a block, bits 4j..4j+3 of word i
are column j * BW + i:

    word 0     bits  0-3: column 0       4-7: column BW       ...  28-31: column 7*BW
    word 1     bits  0-3: column 1       4-7: column BW+1     ...  28-31: column 7*BW+1
    ...
    word BW-1  bits  0-3: column BW-1    4-7: column 2*BW-1   ...  28-31: column 8*BW-1

So nibble j of a block of words is a contiguous slice of BW columns: activations are read as they
lie, nothing is shuffled, and each word is read once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.int4 import reference


def block_words(group: int, k: int) -> int | None:
    """BW for groups of `group` columns in rows of `k`; None if a slice would straddle groups."""
    if group >= k or group % 32 == 0:
        return 32
    return 16 if group % 16 == 0 else None


def kernel_name(group: int, k: int, *, zeros: bool) -> str:
    """By which tuning tables know the kernel: its registers depend on all of these."""
    scales = "row" if group >= k else f"g{group}"
    return f"int4.{scales}.zeros" if zeros else f"int4.{scales}"


def pack_words(codes: Tensor, bw: int) -> Tensor:
    """Packs codes uint8 0..15 [N, K] to int32 [N, W], W = ceil(K / 8BW) * BW, zero beyond K."""
    n, k = codes.shape
    slices = F.pad(codes, (0, -k % (8 * bw))).view(n, -1, 8, bw).to(torch.int32)
    words = torch.zeros(n, slices.shape[1], bw, dtype=torch.int32, device=codes.device)
    for j in range(8):
        words |= slices[:, :, j] << (4 * j)
    return words.view(n, -1)


def unpack_words(words: Tensor, bw: int, k: int) -> Tensor:
    """Unpacks int32 [N, W] to codes uint8 [N, k]."""
    n = words.shape[0]
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    slices = (words.view(n, -1, 1, bw) >> shifts[:, None]) & 15  # [N, blocks, 8, BW]
    return slices.to(torch.uint8).view(n, -1)[:, :k]


def dequantize_words(
    words: Tensor, scales: Tensor, zeros: Tensor | None, group: int, k: int
) -> Tensor:
    """Decodes words with scales and zeros [G, N] to float32 [N, k], in plain torch."""
    bw = block_words(group, k)
    assert bw is not None, "words are only packed for groups that fit blocks"
    transposed = None if zeros is None else zeros.T
    return reference.dequantize(unpack_words(words, bw, k), scales.T, transposed, group)


def matmul_words(
    x: Tensor, words: Tensor, scales: Tensor, zeros: Tensor | None, group: int, bias: Tensor | None
) -> Tensor:
    """The definition of the words operator in plain torch: its implementation on a CPU."""
    weight = dequantize_words(words, scales, zeros, group, x.shape[1])
    y = x.to(torch.bfloat16).to(torch.float32) @ weight.T
    return (y if bias is None else y + bias.to(torch.float32)).to(x.dtype)
