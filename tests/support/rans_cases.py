"""Random symbols with and without classes, encoded by the kernels' plain encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tersor.kernels.entropy import EncodedChunk
from tersor.kernels.entropy.encoder import encode, tables_of

PRECISIONS = {torch.uint8: 12, torch.uint16: 14}


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """How many classes rows and columns have; without rows there is one table."""

    row_symbols: int = 0
    rows: int = 1
    columns: int = 1


ONE_TABLE = Classes()
CHOICES = {
    "one table": ONE_TABLE,
    "rows": Classes(row_symbols=64, rows=4),
    "rows and columns": Classes(row_symbols=64, rows=4, columns=4),
    "columns": Classes(row_symbols=96, columns=3),
    "odd rows": Classes(row_symbols=45, rows=3),
    "odd rows and columns": Classes(row_symbols=45, rows=2, columns=4),
    "rows shorter than a step": Classes(row_symbols=7, rows=4, columns=2),
    "one row": Classes(row_symbols=1000, rows=2, columns=2),
}
ODD_SIZES = (1, 31, 32, 33, 63, 200)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RansCase:
    """Symbols, and the chunk that must decode to them."""

    symbols: Tensor
    chunk: EncodedChunk

    @classmethod
    def random(
        cls,
        size: int,
        dtype: torch.dtype = torch.uint8,
        *,
        classes: Classes = ONE_TABLE,
        precision: int | None = None,
        patches: int = 0,
        spread: float = 3.0,
        seed: int = 0,
    ) -> RansCase:
        """Bell-shaped symbols whose centre moves with their table.

        `patches` symbols are such that no table has them. `spread` 0 makes all symbols of a class
        alike, and then a table has one symbol.
        """
        rng = torch.Generator().manual_seed(seed)
        width = classes.row_symbols
        rows = -(-size // width) if width else 0
        columns = width if classes.columns > 1 else 0
        row_class = torch.randint(0, classes.rows, (rows,), generator=rng)
        column_class = torch.randint(0, classes.columns, (columns,), generator=rng)
        index = torch.arange(size)
        table = torch.zeros(size, dtype=torch.int64)
        if rows:
            table += row_class[index // width] * classes.columns
        if columns:
            table += column_class[index % width]
        wide = 20 if dtype == torch.uint16 else 1
        noise = torch.randn(size, generator=rng) * spread * wide
        symbols = (40 + 7 * table + noise).clamp(0, 255 * wide).to(torch.int64)
        tables, alphabet = classes.rows * classes.columns, 1 << (8 * dtype.itemsize)
        counts = torch.zeros(tables, alphabet, dtype=torch.int64)
        counts.view(-1).scatter_add_(0, table * alphabet + symbols, torch.full((size,), 1000))
        lacking = torch.randperm(size, generator=rng)[:patches]
        counts[:, alphabet - 1] = 0
        counts[counts.sum(1) == 0, 40] = 1  # a class without symbols still has a table
        symbols[lacking] = alphabet - 1
        coded = symbols.to(dtype)
        chunk = encode(
            coded,
            tables_of(counts, precision or PRECISIONS[dtype], dtype),
            row_symbols=width,
            row_class=row_class.to(torch.uint8),
            column_classes=classes.columns,
            column_class=column_class.to(torch.uint8),
        )
        return cls(symbols=coded, chunk=chunk)


def damaged(
    chunk: EncodedChunk, *, word: int | None = None, state: int | None = None
) -> EncodedChunk:
    """The chunk with one word, or one state of its first block, changed in one bit."""
    words, states = chunk.words.clone(), chunk.states.clone()
    if word is not None:
        words[word] = int(words[word]) ^ 4
    if state is not None:
        states[0, state] = int(states[0, state]) ^ (1 << 20)
    return replace(chunk, words=words, states=states)


def without_last_word(chunk: EncodedChunk) -> EncodedChunk:
    """The chunk, whose last block lacks its last word."""
    ends = chunk.word_ends.clone()
    ends[-1] -= 1
    return replace(chunk, words=chunk.words[:-1].clone(), word_ends=ends)


def with_a_word_more(chunk: EncodedChunk) -> EncodedChunk:
    """The chunk, whose last block has a word that nobody asks for."""
    ends = chunk.word_ends.clone()
    ends[-1] += 1
    more = torch.zeros(1, dtype=torch.uint16)
    return replace(chunk, words=torch.cat([chunk.words, more]), word_ends=ends)
