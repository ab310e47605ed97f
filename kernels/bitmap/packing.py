"""How a bitmap and its values lie in memory on a GPU.

Columns go in blocks of 128, four words of 32 bits. Bit 4c + j of a block (the lowest of the first
word is 0) is column 32j + c: so bit j of the nibbles of a block is a contiguous slice of 32
columns, and activations are read as they lie. Values follow the order of the bits, block after
block, row after row. `offsets` says how many values of the row lie before each word.

One thread so counts ones once for four weights, and its values lie beside each other and those of
its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.bitmap.planes import bit_counts, gathered
from tersor.kernels.bitmap.reference import pack_bits, unpack_bits

BLOCK = 128  # columns of a block, and of a step of the GPU kernel
WORDS = 4  # of a block
_SLICES = 4


def blocks_of(k: int) -> int:
    """Blocks of a row of k columns."""
    return -(-k // BLOCK)


def kernel_name(*, scales: bool) -> str:
    """By which tuning tables know the kernel for values with or without scales."""
    return "bitmap.int8" if scales else "bitmap"


def offset_dtype(k: int) -> torch.dtype:
    """int16 where a row's values can be counted in it, else int32."""
    return torch.int16 if k < 1 << 15 else torch.int32


def pack_mask(mask: Tensor) -> Tensor:
    """Packs a mask bool [N, K] to words int32 [N, 4 * blocks]."""
    return pack_bits(_by_bits(mask)).view(torch.int32)


def unpack_mask(words: Tensor) -> Tensor:
    """The mask of `words` in the order of bits: bool [N, 128 * blocks]."""
    return unpack_bits(words.view(torch.uint8), words.shape[1] * 32)


def pack_offsets(words: Tensor, k: int) -> Tensor:
    """Values before each word in its row: [N, 4 * blocks] in `offset_dtype(k)`."""
    n = words.shape[0]
    counts = bit_counts(words.view(torch.uint8)).view(n, -1, 4).sum(2, dtype=torch.int64)
    return (counts.cumsum(1) - counts).to(offset_dtype(k))


def pack_values(mask: Tensor, values: Tensor) -> Tensor:
    """Brings the values of rows with the mask bool [n, K] from row-major into the order of bits."""
    ranks = mask.view(-1).cumsum(0).view(mask.shape) - 1
    return values[_by_bits(ranks)[_by_bits(mask)]]


def dequantize_words(
    words: Tensor, starts: Tensor, values: Tensor, scales: Tensor | None, k: int
) -> Tensor:
    """Decodes words with values as `between_zeros` makes them to float32 [n, k], in plain torch."""
    mask = unpack_mask(words).view(torch.uint8)
    weight = gathered(values, mask, starts, scales)
    blocks = weight.view(weight.shape[0], -1, BLOCK // _SLICES, _SLICES)
    return blocks.transpose(2, 3).reshape(weight.shape)[:, :k]


def _by_bits(columns: Tensor) -> Tensor:
    """Brings [N, K] from the order of columns into that of bits, zero beyond K: [N, Kp]."""
    n, k = columns.shape
    blocks = F.pad(columns, (0, -k % BLOCK)).view(n, -1, _SLICES, BLOCK // _SLICES)
    return blocks.transpose(2, 3).reshape(n, -1)
