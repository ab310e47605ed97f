"""The tables from which codes are decoded: pairs for a byte, and bytes for PRMT.

A byte is two codes, so a table of 256 entries of two values decodes two weights with one load.
Where there is PRMT, which picks four bytes out of eight by the nibbles of a selector, the 16 values
fit eight registers instead and no memory is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

PAIRS = 8  # where the pairs begin in `gpu_lookup`
LOOKUP_SIZE = PAIRS + 256


def pairs(table: Tensor) -> Tensor:
    """[256, 2]: both values of each byte of two codes, that of the low half first."""
    byte = torch.arange(256, device=table.device)
    return torch.stack((table[byte & 15], table[byte >> 4]), dim=1)


def gpu_lookup(table: Tensor) -> Tensor:
    """The tables of the GPU kernels for `table` float32 [16]: int32 [264].

    Values are rounded to bf16. Entries 0..3 are the low bytes of values 0..15, entries 4..7 their
    high bytes, then come 256 pairs of bf16, the low code's in the low half.
    """
    narrow = table.to(torch.bfloat16)
    halves = narrow.view(torch.uint8).view(16, 2)  # low and high byte
    return torch.cat(
        (
            halves.T.contiguous().view(torch.int32).view(-1),
            pairs(narrow).contiguous().view(torch.int32).view(-1),
        )
    )


def rounded_table(lookup: Tensor) -> Tensor:
    """The table bf16 [16] that `gpu_lookup` holds."""
    return lookup[PAIRS : PAIRS + 16].contiguous().view(torch.bfloat16)[::2]


def is_mirrored(table: Tensor) -> bool:
    """Whether values c and c + 8 differ in no more than their high bytes, as with signs.

    True for FP4 and powers of two; half of the low bytes then need not be looked up.
    """
    low = table.to(torch.bfloat16).view(torch.int16) & 0xFF
    return torch.equal(low[:8], low[8:])
