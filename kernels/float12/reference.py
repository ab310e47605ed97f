"""The definition of the `float12` layout's packed form, in plain torch (packing.py draws it)."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.float12.packing import BW


def decode(
    words: Tensor,
    bases: Tensor,
    starts: Tensor,
    ends: Tensor,
    columns: Tensor,
    values: Tensor,
    k: int,
) -> Tensor:
    """Decodes rows to bf16 [R, k], bit for bit.

    Args:
        words: int32 [R, W].
        bases: uint8 [R].
        starts: int32 [R]; row r has the escapes starts[r]..ends[r].
        ends: int32 [R].
        columns: int32 [E].
        values: bf16 [E].
        k: columns of the weight.
    """
    n = words.shape[0]
    blocks = words.view(n, -1, 3, BW)
    codes = _slices(blocks[:, :, :1], 4).reshape(n, -1)[:, :k]
    signs = _slices(blocks[:, :, 1:], 8).reshape(n, -1)[:, :k]
    exponents = torch.where(codes > 0, codes + bases[:, None], 0)
    bits = ((signs & 128) << 8) | (exponents << 7) | (signs & 127)
    weight = bits.to(torch.int16).view(torch.bfloat16)
    counts = (ends - starts).to(torch.int64)
    row = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    entry = torch.arange(row.numel(), device=row.device) + (starts - before)[row]
    weight[row, columns[entry].to(torch.int64)] = values[entry]
    return weight


def matmul(
    x: Tensor,
    words: Tensor,
    bases: Tensor,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiplies x [M, K], rounded to bf16, by the weight, adds bias [N] -> float32 [M, N]."""
    weight = decode(words, bases, offsets[:-1], offsets[1:], columns, values, x.shape[1])
    y = x.to(torch.bfloat16).to(torch.float32) @ weight.to(torch.float32).T
    return y if bias is None else y + bias.to(torch.float32)


def _slices(words: Tensor, bits: int) -> Tensor:
    """Unpacks int32 [..., BW] to int32 [..., 32 / bits, BW]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return (words[..., None, :] >> shifts[:, None]) & ((1 << bits) - 1)
