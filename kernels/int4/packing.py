"""How the codes of the `int4` layout lie in words on a GPU.

A word is 32 bits: eight codes. Columns go in blocks of 8 * BW; in a block, bits 4j..4j+3 of word i
are column j * BW + i:

    word 0     bits  0-3: column 0       4-7: column BW       ...  28-31: column 7*BW
    word 1     bits  0-3: column 1       4-7: column BW+1     ...  28-31: column 7*BW+1
    ...
    word BW-1  bits  0-3: column BW-1    4-7: column 2*BW-1   ...  28-31: column 8*BW-1

So nibble j of a block of words is a contiguous slice of BW columns: activations are read as they
lie, nothing is shuffled, and each word is read once.

Codes of six bits keep their low four in words like these, and their high two in 16 bits beside each
word, where those of nibble j begin at bit HIGH_SHIFTS[j]: an order in which one instruction puts
those of two codes above their nibbles (triton_unpack.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.int4 import reference

HIGH_SHIFTS = (4, 6, 12, 14, 2, 0, 10, 8)


def block_words(group: int, k: int) -> int | None:
    """BW for groups of `group` columns in rows of `k`; None if a slice would straddle groups."""
    if group >= k or group % 32 == 0:
        return 32
    return 16 if group % 16 == 0 else None


def kernel_name(group: int, k: int, *, zeros: bool, bits: int = 4) -> str:
    """By which tuning tables know the kernel: its registers depend on all of these."""
    scales = "row" if group >= k else f"g{group}"
    return f"int{bits}.{scales}.zeros" if zeros else f"int{bits}.{scales}"


def pack_words(codes: Tensor, bw: int) -> Tensor:
    """Packs codes uint8 0..15 [N, K] to int32 [N, W], W = ceil(K / 8BW) * BW, zero beyond K."""
    n, k = codes.shape
    slices = F.pad(codes, (0, -k % (8 * bw))).view(n, -1, 8, bw).to(torch.int32)
    words = torch.zeros(n, slices.shape[1], bw, dtype=torch.int32, device=codes.device)
    for j in range(8):
        words |= slices[:, :, j] << (4 * j)
    return words.view(n, -1)


def pack_high(high: Tensor, bw: int) -> Tensor:
    """Packs high bits uint8 0..3 [N, K] to int16 [N, W], beside the words of `pack_words`."""
    n, k = high.shape
    slices = F.pad(high, (0, -k % (8 * bw))).view(n, -1, 8, bw).to(torch.int32)
    packed = torch.zeros(n, slices.shape[1], bw, dtype=torch.int32, device=high.device)
    for j, shift in enumerate(HIGH_SHIFTS):
        packed |= slices[:, :, j] << shift
    return packed.view(n, -1).to(torch.int16)  # bit 15 becomes the sign: the bits are kept


def unpack_high(packed: Tensor, bw: int, k: int) -> Tensor:
    """Unpacks int16 [N, W] to high bits uint8 [N, k]."""
    n = packed.shape[0]
    shifts = torch.tensor(HIGH_SHIFTS, dtype=torch.int32, device=packed.device)
    slices = (packed.view(n, -1, 1, bw).to(torch.int32) >> shifts[:, None]) & 3
    return slices.to(torch.uint8).view(n, -1)[:, :k]


def unpack_words(words: Tensor, bw: int, k: int) -> Tensor:
    """Unpacks int32 [N, W] to codes uint8 [N, k]."""
    n = words.shape[0]
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    slices = (words.view(n, -1, 1, bw) >> shifts[:, None]) & 15  # [N, blocks, 8, BW]
    return slices.to(torch.uint8).view(n, -1)[:, :k]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleCut:
    """How the scales of groups of columns are laid beside blocks of words."""

    parts: int  # scales of a row in a block: 1, 2, 4 or 8
    blocks: int  # blocks that share their scales; 1 unless parts is 1
    columns: int  # that one of these scales stands for

    @classmethod
    def of(cls, group: int, bw: int) -> ScaleCut:
        """For groups of `group` columns, a multiple of `bw`, in blocks of 8 * bw.

        A group that neither divides a block nor is whole blocks repeats its scale.
        """
        if group % (8 * bw) == 0:
            return cls(parts=1, blocks=group // (8 * bw), columns=group)
        parts = next(parts for parts in (2, 4, 8) if group % (8 // parts * bw) == 0)
        return cls(parts=parts, blocks=1, columns=8 // parts * bw)

    def count(self, k: int) -> int:
        """Runs of blocks with scales of their own in rows of k columns."""
        return -(-k // (self.columns * self.parts))


def pack_scales(scales: Tensor, group: int, k: int) -> Tensor:
    """Packs scales (or zeros) [N, G], or [1, 1] for all rows, as the kernels read them.

    One a row: [N], or [1]. One a group: [S, N, P], P parts of a block of words (see `ScaleCut`)
    beside each other and S = ceil(blocks / ScaleCut.blocks).
    """
    bw = block_words(group, k)
    assert bw is not None, "words are only packed for groups that fit blocks"
    if group >= k:
        return scales[:, 0].contiguous()
    cut = ScaleCut.of(group, bw)
    columns = torch.arange(cut.count(k) * cut.parts, device=scales.device) * cut.columns
    groups = columns.div_(group, rounding_mode="floor").clamp_(max=scales.shape[1] - 1)
    return scales[:, groups].view(scales.shape[0], -1, cut.parts).transpose(0, 1).contiguous()


def unpack_scales(packed: Tensor) -> Tensor:
    """[N, S * P] of packed scales [S, N, P], [N, 1] of [N], [1, 1] of [1]."""
    if packed.dim() == 1:
        return packed[:, None]
    return packed.transpose(0, 1).reshape(packed.shape[1], -1)


def dequantize_words(
    words: Tensor, scales: Tensor, zeros: Tensor | None, group: int, k: int
) -> Tensor:
    """Decodes words with packed scales and zeros to float32 [N, k], in plain torch."""
    bw = block_words(group, k)
    assert bw is not None, "words are only packed for groups that fit blocks"
    columns = k if group >= k else ScaleCut.of(group, bw).columns
    wide_zeros = None if zeros is None else unpack_scales(zeros)
    return reference.dequantize(
        unpack_words(words, bw, k), unpack_scales(scales), wide_zeros, columns
    )
