"""Many chunks packed for one launch: their blocks are decoded side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tersor.kernels.entropy.chunk import BLOCK_SYMBOLS, LANES, EncodedChunk, RansTables
from tersor.kernels.errors import CorruptChunkError, LayoutError
from tersor.kernels.staging import Staging

# Numbers that describe a block; the kernel loads them by this order.
BLOCK_FIELDS = (
    "words_at",  # in `words`
    "words_end",
    "out_at",  # of the first symbol in the output
    "symbols",  # of the block
    "precision",
    "slots_at",  # of the block's first table, in `slots`
    "tables",
    "row",  # of the first symbol, in `rows`
    "last_row",  # of the chunk, in `rows`
    "column",  # of the first symbol in its row
    "row_symbols",
    "columns_at",  # in `columns`
    "column_stride",  # 0: all columns are of one class
)
# The row of a chunk without rows: longer than any chunk, and a multiple of LANES.
ENDLESS_ROW = 1 << 30
# Up to here an entry of a table fits 32 bits: 12 of frequency - 1, 8 of symbol, 12 of distance.
NARROW_PRECISION = 12

_ZERO = np.zeros(1, np.int64)


class TableChoice(IntEnum):
    """What the 32 symbols of a step have in common: the less it is, the slower the kernel."""

    ROW = 0  # row, and there is one column class: all use one table
    COLUMN = 1  # row
    SYMBOL = 2  # nothing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RansBatch:
    """Chunks as one launch reads them, on one device.

    Offsets of classes are in slots, ready to be added: class * 2^precision.
    """

    chunk_symbols: tuple[int, ...]  # the output holds the chunks one after the other
    words: Tensor  # uint16 [words]
    states: Tensor  # uint32 [blocks, LANES]
    blocks: Tensor  # int64 [blocks, len(BLOCK_FIELDS)]
    # Entries of all tables, [slots]. uint32: distance << 20 | symbol << 12 | frequency - 1, if that
    # fits all of them; else uint64: symbol << 32 | frequency << 16 | distance.
    slots: Tensor
    rows: Tensor  # int32 [rows]: the part of each row's class in the offset of a table
    # int32 [columns]: that of each column's class. The first is 0, for chunks without column
    # classes; two steps more follow the last, since classes are read ahead.
    columns: Tensor
    patch_positions: Tensor  # int64 [patches], in the output
    patch_values: Tensor  # uint8 or uint16 [patches]: also the dtype of the output
    choice: TableChoice

    @classmethod
    def pack(
        cls,
        chunks: Sequence[EncodedChunk],
        device: torch.device,
        *,
        places: Sequence[int] | None = None,
        staging: Staging | None = None,
    ) -> Self:
        """Joins the parts of all chunks, and copies them to `device`.

        Tables are taken once if chunks share the object.

        Args:
            chunks: at least one.
            device: where they are to be decoded.
            places: where each chunk begins in the output, in symbols; None: one after the other.
            staging: what copies to `device`, if it is at hand.

        Raises:
            LayoutError: there is no chunk, or the chunks' symbols are of different widths.
        """
        dtypes = {chunk.tables.values.dtype for chunk in chunks}
        if len(dtypes) != 1:
            raise LayoutError(
                f"a batch needs chunks whose symbols have one width, got {len(chunks)} chunks of "
                f"{sorted(map(str, dtypes))}"
            )
        tables = list({id(chunk.tables): chunk.tables for chunk in chunks}.values())
        rows = [_row_offsets(chunk) for chunk in chunks]
        columns = [chunk.column_class.to(torch.int32) << chunk.tables.precision for chunk in chunks]
        slots_at = _starts(each.codes.numel() for each in tables)
        tables_at = {id(each): at for each, at in zip(tables, slots_at, strict=True)}
        out_at = _starts(chunk.symbols for chunk in chunks) if places is None else places
        starts = zip(
            _starts(chunk.words.numel() for chunk in chunks),
            out_at,
            (tables_at[id(chunk.tables)] for chunk in chunks),
            _starts(each.numel() for each in rows),
            _starts(each.numel() for each in columns),
            strict=True,
        )
        blocks = [_describe(chunk, *at) for chunk, at in zip(chunks, starts, strict=True)]
        patches = [chunk.patch_positions + at for chunk, at in zip(chunks, out_at, strict=True)]
        sent = (staging or Staging(device)).send(
            [
                [chunk.words for chunk in chunks],
                [chunk.states for chunk in chunks],
                blocks,
                [_entries(tables)],
                rows,
                [_zeros(1), *columns, _zeros(2 * LANES)],
                patches,
                [chunk.patch_values for chunk in chunks],
            ]
        )
        words, states, described, slots, row_offsets, column_offsets, positions, values = sent
        return cls(
            chunk_symbols=tuple(chunk.symbols for chunk in chunks),
            words=words,
            states=states.view(-1, LANES),
            blocks=described.view(-1, len(BLOCK_FIELDS)),
            slots=slots,
            rows=row_offsets,
            columns=column_offsets,
            patch_positions=positions,
            patch_values=values,
            choice=max(map(_choice, chunks)),
        )

    @property
    def symbols(self) -> int:
        """Of all chunks."""
        return sum(self.chunk_symbols)

    def check(self, errors: Tensor) -> None:
        """Waits for a launch, and looks at what it says of each block: int32 [blocks], 0 is well.

        Raises:
            CorruptChunkError: a block does not decode.
        """
        bad = errors.nonzero()
        if bad.numel() == 0:
            return
        at = 0
        for number, symbols in enumerate(self.chunk_symbols):
            blocks = -(-symbols // BLOCK_SYMBOLS)
            if int(bad[0]) < at + blocks:
                raise CorruptChunkError(
                    f"block {int(bad[0]) - at} of chunk {number} does not decode, one of "
                    f"{bad.numel()} of {errors.numel()} blocks; copy the file again"
                )
            at += blocks


def _starts(sizes: Iterable[int]) -> list[int]:
    """Where each part begins if they lie one after the other."""
    return list(accumulate(sizes, initial=0))[:-1]


def _row_symbols(chunk: EncodedChunk) -> int:
    endless = chunk.column_classes == 1 and not 0 < chunk.row_symbols < chunk.symbols
    return ENDLESS_ROW if endless else chunk.row_symbols


def _choice(chunk: EncodedChunk) -> TableChoice:
    if _row_symbols(chunk) % LANES:
        return TableChoice.SYMBOL
    return TableChoice.ROW if chunk.column_classes == 1 else TableChoice.COLUMN


def _zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32)


def _row_offsets(chunk: EncodedChunk) -> Tensor:
    """int32 [rows], at least one."""
    if chunk.row_class.numel() == 0:
        return _zeros(1)
    return (chunk.row_class.to(torch.int32) * chunk.column_classes) << chunk.tables.precision


def _describe(
    chunk: EncodedChunk, words_at: int, out_at: int, slots_at: int, rows_at: int, columns_at: int
) -> Tensor:
    """The chunk's part of `RansBatch.blocks`, from where its parts begin in those of the batch."""
    row_symbols = _row_symbols(chunk)
    by_column = chunk.column_classes > 1
    first = np.arange(chunk.blocks) * BLOCK_SYMBOLS
    ends = chunk.word_ends.numpy()
    fields: dict[str, int | npt.NDArray[np.int64]] = {
        "words_at": words_at + np.concatenate([_ZERO, ends[:-1]])[: chunk.blocks],
        "words_end": words_at + ends,
        "out_at": out_at + first,
        "symbols": np.minimum(chunk.symbols - first, BLOCK_SYMBOLS),
        "precision": chunk.tables.precision,
        "slots_at": slots_at,
        "tables": chunk.tables.count,
        "row": rows_at + first // row_symbols,
        "last_row": rows_at + max(1, chunk.row_class.numel()) - 1,
        "column": first % row_symbols,
        "row_symbols": row_symbols,
        "columns_at": 1 + columns_at if by_column else 0,
        "column_stride": int(by_column),
    }
    described = np.empty((chunk.blocks, len(BLOCK_FIELDS)), np.int64)
    # In numpy: with a tensor a field, a bundle's thousands of chunks would take seconds.
    for column, name in enumerate(BLOCK_FIELDS):
        described[:, column] = fields[name]
    return torch.from_numpy(described)


def _entries(tables: Sequence[RansTables]) -> Tensor:
    """`RansBatch.slots` of all tables."""
    codes = torch.cat([each.codes for each in tables]).to(torch.int64)
    values = torch.cat([each.values for each in tables])
    if values.dtype == torch.uint8 and all(each.precision <= NARROW_PRECISION for each in tables):
        distance, frequency = codes & 0xFFFF, codes >> 16
        narrow = (distance << 20) | (values.to(torch.int64) << 12) | (frequency - 1)
        return narrow.to(torch.uint32)
    return ((values.to(torch.int64) << 32) | codes).view(torch.uint64)
