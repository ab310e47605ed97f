"""How scales lie in words on a GPU: those of a block of columns beside each other.

A block of 8 * BW columns (kernels/int4/packing.py) has 1, 2, 4 or 8 parts that surely share a
scale. The scales of a block and row are packed into 32-bit words, the first in the lowest bits; a
word lies beside those of the neighbouring rows: int32 [blocks, words a block, N]. A kernel so loads
what a block needs at once, instead of a scale for each part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.codebook4.reference import scale_values
from tersor.kernels.int4.packing import block_words

# Name of a form of scales -> torch dtype.
SCALE_DTYPES = {
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "e8m0": torch.uint8,
    "e4m3": torch.float8_e4m3fn,
}


@dataclass(frozen=True, slots=True)
class ScaleGrid:
    """Where the scales of a weight with `k` columns lie."""

    group: int  # columns per scale, one that `block_words` takes
    k: int
    scale: str  # a key of SCALE_DTYPES

    @property
    def kernel_name(self) -> str:
        """By which tuning tables know the kernel: its registers depend on all of these."""
        group = "row" if self.group >= self.k else f"g{self.group}"
        return f"codebook4.{self.scale}.{group}"

    @property
    def padded_k(self) -> int:
        """Columns of all blocks."""
        return self.blocks * 8 * self.bw

    @property
    def bw(self) -> int:
        """Words of codes in a block."""
        bw = block_words(self.group, self.k)
        assert bw is not None, "words are only packed for groups that fit blocks"
        return bw

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        return -(-self.k // (8 * self.bw))

    @property
    def slices(self) -> int:
        """Slices of BW columns in a part: 1, 2, 4 or 8."""
        if self.group >= self.k:
            return 8
        return next(count for count in (8, 4, 2, 1) if self.group % (self.bw * count) == 0)

    @property
    def words(self) -> int:
        """Words of scales in a block."""
        return -(-(8 // self.slices) // self.in_word)

    @property
    def in_word(self) -> int:
        """Scales in a word: 1, 2 or 4."""
        return 4 // SCALE_DTYPES[self.scale].itemsize

    def pack(self, scales: Tensor) -> Tensor:
        """Packs scales [N, ceil(K / group)] to int32 [blocks, words, N]; zero beyond K."""
        n, groups = scales.shape
        parts = 8 // self.slices
        starts = torch.arange(self.blocks * parts, device=scales.device) * self.slices * self.bw
        raw = scales.contiguous().view(torch.uint8).view(n, groups, -1)
        raw = raw[:, (starts // self.group).clamp_(max=groups - 1)]
        raw[:, starts >= self.k] = 0
        raw = raw.view(n, self.blocks, -1)  # bytes of a block
        packed = F.pad(raw, (0, 4 * self.words - raw.shape[2])).view(torch.int32)
        return packed.permute(1, 2, 0).contiguous()

    def unpack(self, packed: Tensor) -> Tensor:
        """The scales that `pack` packed, float32, one for each part of a block: [N, parts]."""
        n = packed.shape[2]
        dtype = SCALE_DTYPES[self.scale]
        words = packed.permute(2, 0, 1).reshape(-1)
        raw = words.view(torch.uint8).view(n, self.blocks, -1)  # bytes of a block
        raw = raw[:, :, : 8 // self.slices * dtype.itemsize].reshape(n, -1)
        return scale_values(raw.view(dtype))
