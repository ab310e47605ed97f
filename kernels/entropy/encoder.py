"""A plain encoder of the `rans` codec: all blocks advance together, so that numpy is fast enough.

Bundles are written by their own codec, which chooses the tables. This one serves machines that have
torch alone: the GPU tests and the benchmark make their chunks with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tersor.kernels.entropy.chunk import BLOCK_SYMBOLS, LANES, LOW, EncodedChunk, RansTables
from tersor.kernels.entropy.reference import table_of

_Array = npt.NDArray[Any]  # integers of several widths
_NO_CLASSES = torch.empty(0, dtype=torch.uint8)


def tables_of(counts: Tensor, precision: int, dtype: torch.dtype) -> RansTables:
    """Tables for symbols counted in `counts`, int64 [tables, alphabet], each with a count.

    Symbols with a count get a frequency of at least 1, roughly in proportion.
    """
    size = 1 << precision
    codes, values = [], []
    for row in counts:
        symbols = row.nonzero()[:, 0]
        share = (size - symbols.numel()) * row[symbols] // row.sum()
        frequencies = 1 + share
        frequencies[frequencies.argmax()] += size - frequencies.sum()
        starts = frequencies.cumsum(0) - frequencies
        owner = torch.repeat_interleave(torch.arange(symbols.numel()), frequencies)
        codes.append((frequencies[owner] << 16) | (torch.arange(size) - starts[owner]))
        values.append(symbols[owner])
    return RansTables(
        precision=precision,
        codes=torch.cat(codes).to(torch.uint32),
        values=torch.cat(values).to(dtype),
    )


def encode(
    symbols: Tensor,
    tables: RansTables,
    *,
    row_symbols: int = 0,
    row_class: Tensor = _NO_CLASSES,
    column_classes: int = 1,
    column_class: Tensor = _NO_CLASSES,
) -> EncodedChunk:
    """Encodes one chunk; symbols that their table lacks become patches.

    Args:
        symbols: uint8 or uint16 [n].
        tables: as many as there are pairs of classes.
        row_symbols: length of a row; 0 where there is one table.
        row_class: uint8 [rows].
        column_classes: how many there are.
        column_class: uint8 [row_symbols], where there is more than one.

    Raises:
        LayoutError: the classes do not fit the tables.
    """
    blocks = -(-symbols.numel() // BLOCK_SYMBOLS)
    empty = EncodedChunk(
        symbols=symbols.numel(),
        tables=tables,
        words=torch.empty(0, dtype=torch.uint16),
        word_ends=torch.zeros(blocks, dtype=torch.int64),
        states=torch.full((blocks, LANES), LOW, dtype=torch.int64).to(torch.uint32),
        row_symbols=row_symbols,
        row_class=row_class,
        column_classes=column_classes,
        column_class=column_class,
        patch_positions=torch.empty(0, dtype=torch.int64),
        patch_values=torch.empty(0, dtype=tables.values.dtype),
    )
    frequencies, starts = _by_symbol(tables)
    table = table_of(empty, torch.arange(symbols.numel())).numpy()
    coded = symbols.numpy().astype(np.int64)
    patches = np.flatnonzero(frequencies[table, coded] == 0)
    coded[patches] = frequencies.argmax(axis=1)[table[patches]]
    words, ends, states = _encode_blocks(
        frequencies[table, coded], starts[table, coded], tables.precision
    )
    return EncodedChunk(
        symbols=empty.symbols,
        tables=tables,
        words=torch.from_numpy(words),
        word_ends=torch.from_numpy(ends),
        states=torch.from_numpy(states),
        row_symbols=row_symbols,
        row_class=row_class,
        column_classes=column_classes,
        column_class=column_class,
        patch_positions=torch.from_numpy(patches),
        patch_values=symbols[torch.from_numpy(patches)],
    )


def _by_symbol(tables: RansTables) -> tuple[_Array, _Array]:
    """Frequency (0: not there) and first slot of each symbol: uint64 [tables, alphabet]."""
    codes = tables.codes.numpy().astype(np.uint64)
    slots = np.arange(codes.size)
    first = (codes & np.uint64(0xFFFF)) == 0
    where = (slots[first] >> tables.precision, tables.values.numpy()[first].astype(np.int64))
    alphabet = 1 << (8 * tables.values.itemsize)
    frequencies = np.zeros((tables.count, alphabet), np.uint64)
    starts = np.zeros_like(frequencies)
    frequencies[where] = codes[first] >> np.uint64(16)
    starts[where] = slots[first] & ((1 << tables.precision) - 1)
    return frequencies, starts


def _encode_blocks(
    frequencies: _Array, starts: _Array, precision: int
) -> tuple[_Array, _Array, _Array]:
    """Words, their ends and the decoder's states, from each symbol's frequency and first slot."""
    count = frequencies.size
    blocks = -(-count // BLOCK_SYMBOLS)
    steps = -(-min(count, BLOCK_SYMBOLS) // LANES)
    shape = (blocks, steps, LANES)
    padding = blocks * steps * LANES - count
    # A padded symbol of frequency 2^p and first slot 0 leaves the state as it is.
    frequencies = np.pad(frequencies, (0, padding), constant_values=1 << precision).reshape(shape)
    starts = np.pad(starts, (0, padding)).reshape(shape)
    words = np.empty(shape, np.uint16)
    spilled = np.empty(shape, np.bool_)
    states = np.full((blocks, LANES), LOW, np.uint64)
    bits, room, half = np.uint64(precision), np.uint64(32 - precision), np.uint64(16)
    for step in reversed(range(steps)):
        frequency = frequencies[:, step]
        # 2^p << room is 2^32, which no state reaches.
        full = states >= frequency << room
        spilled[:, step] = full
        words[:, step] = states & np.uint64(0xFFFF)
        states = np.where(full, states >> half, states)
        quotient = states // frequency
        states = (quotient << bits) + (states - quotient * frequency) + starts[:, step]
    ends = np.cumsum(spilled.sum(axis=(1, 2), dtype=np.int64))
    return words[spilled], ends, states.astype(np.uint32)
