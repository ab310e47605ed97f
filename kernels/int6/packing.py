"""How the codes of the `int6` layout lie on a GPU: as int4's words, and two more bits a code."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.int4.packing import (
    block_words,
    pack_high,
    pack_words,
    unpack_high,
    unpack_words,
)
from tersor.kernels.int6 import reference

MIDDLE = 32  # the code of weight 0 in words, which hold codes without a sign


def words_per_block(k: int) -> int:
    """BW of the words of a row of k columns."""
    bw = block_words(k, k)
    assert bw is not None, "a whole row fits blocks"
    return bw


def pack(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Packs codes int8 -32..31 [N, K] to words int32 and high bits int16, both [N, W]."""
    bw = words_per_block(codes.shape[1])
    raised = (codes + MIDDLE).to(torch.uint8)
    return pack_words(raised & 15, bw), pack_high(raised >> 4, bw)


def unpack(words: Tensor, high: Tensor, k: int) -> Tensor:
    """Unpacks words and high bits [N, W] to codes int8 [N, k]."""
    bw = words_per_block(k)
    raised = unpack_words(words, bw, k) | (unpack_high(high, bw, k) << 4)
    return raised.to(torch.int8) - MIDDLE


def dequantize_words(words: Tensor, high: Tensor, scales: Tensor, k: int) -> Tensor:
    """Decodes words and high bits with scales [N] or [1] to float32 [N, k], in plain torch."""
    return reference.dequantize(unpack(words, high, k), scales)
