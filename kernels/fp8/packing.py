"""How the codes of the `fp8` layout lie in memory while resident, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.cpu import padded_columns
from tersor.kernels.errors import LayoutError
from tersor.kernels.fp8.reference import BLOCK

BK = BLOCK  # columns of a step of the GPU kernel: a step has one scale a row
# Blocks are padded to whole ones; rows with a scale each to whole 32-byte sectors.
ROW_MULTIPLE = 32


def padded_k(k: int, *, blocks: bool) -> int:
    """Columns of the packed codes of a weight with `k` columns."""
    multiple = BLOCK if blocks else ROW_MULTIPLE
    return -(-k // multiple) * multiple


def kernel_name(*, blocks: bool) -> str:
    """By which tuning tables know the kernel."""
    return "fp8.block" if blocks else "fp8.row"


def pack(codes: Tensor, *, blocks: bool) -> Tensor:
    """Packs codes e4m3 [N, K] to contiguous uint8 [N, padded_k(K)], zero columns at the end."""
    return padded_columns(codes.view(torch.uint8), padded_k(codes.shape[1], blocks=blocks))


def check_codes(codes: Tensor) -> None:
    """Raises LayoutError if codes e4m3 hold NaN (bytes 0x7f and 0xff), which no kernel decodes."""
    for rows in codes.view(torch.uint8).split(4096):
        # Doubled, the sign is gone, and NaN alone is 0xfe.
        if rows.numel() and int((rows << 1).max()) == 0xFE:
            raise LayoutError(
                "`fp8.codes` holds NaN (0x7f or 0xff), expected finite e4m3 numbers; convert "
                "the model again, leaving the tensor out"
            )
