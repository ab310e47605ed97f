"""The definition of the `rans` codec's decoder, in plain torch.

A lane's state x holds its next symbol in its low bits. With p bits of precision, in table t:

    slot         = t * 2^p + x mod 2^p
    symbol       = values[slot]
    x            = frequency[slot] * (x // 2^p) + distance[slot]
    if x < 2^16:   x = x * 2^16 + the next word

Symbol i of a block belongs to lane i mod 32. The words of a block are one sequence: within a step
of 32 symbols the lanes that need one take it in lane order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.entropy.chunk import BLOCK_SYMBOLS, LANES, LOW, EncodedChunk


def decode(chunk: EncodedChunk) -> tuple[Tensor, Tensor]:
    """Decodes all blocks, a step of each at a time.

    Returns:
        Symbols [symbols], uint8 or uint16, and per block [blocks] whether it does not decode:
        words are left over or missing (a missing one counts as 0), or a lane does not end where
        its encoder began.
    """
    bits = chunk.tables.precision
    codes = chunk.tables.codes.to(torch.int64)
    values = chunk.tables.values.to(torch.int64)
    words = torch.cat([chunk.words.to(torch.int64), torch.zeros(1, dtype=torch.int64)])
    ends = chunk.word_ends
    at = torch.cat([torch.zeros(1, dtype=torch.int64), ends])[:-1]
    state = chunk.states.to(torch.int64)
    lanes = torch.arange(LANES)
    starts = torch.arange(chunk.blocks)[:, None] * BLOCK_SYMBOLS
    out = torch.zeros(chunk.blocks, BLOCK_SYMBOLS, dtype=torch.int64)
    for first in range(0, min(chunk.symbols, BLOCK_SYMBOLS), LANES):
        index = starts + first + lanes  # [blocks, LANES]
        active = index < chunk.symbols
        slot = (table_of(chunk, index) << bits) + (state & ((1 << bits) - 1))
        out[:, first : first + LANES] = values[slot]
        moved = (codes[slot] >> 16) * (state >> bits) + (codes[slot] & 0xFFFF)
        state = torch.where(active, moved, state)
        short = active & (state < LOW)
        word = at[:, None] + short.cumsum(1) - short.to(torch.int64)
        word = torch.where(word < ends[:, None], word, chunk.words.numel())
        state = torch.where(short, (state << 16) | words[word], state)
        at = at + short.sum(1)
    symbols = out.reshape(-1)[: chunk.symbols]
    symbols[chunk.patch_positions] = chunk.patch_values.to(torch.int64)
    errors = (at != ends) | (state != LOW).any(1)
    return symbols.to(chunk.tables.values.dtype), errors


def table_of(chunk: EncodedChunk, index: Tensor) -> Tensor:
    """The table of each symbol: int64 indices within the chunk (or beyond its end) -> int64."""
    if chunk.tables.count == 1:
        return torch.zeros_like(index)
    row = (index // chunk.row_symbols).clamp(max=chunk.row_class.numel() - 1)
    table = chunk.row_class.to(torch.int64)[row] * chunk.column_classes
    if chunk.column_classes > 1:
        table += chunk.column_class.to(torch.int64)[index % chunk.row_symbols]
    return table
