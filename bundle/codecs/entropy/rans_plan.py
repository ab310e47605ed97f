"""Which tables a chunk is coded with: its own, its own by class, or those of its stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.bundle.codecs.base import StreamShape
from tersor.bundle.codecs.entropy.classes import COLUMN_CLASSES, ROW_CLASSES, assign_rows, classify
from tersor.bundle.codecs.entropy.counting import count_symbols
from tersor.bundle.codecs.entropy.layout import HEADER_BYTES, LANES, num_blocks
from tersor.bundle.codecs.entropy.rans_compiled import fill_tables
from tersor.bundle.codecs.entropy.rans_model import RansModel, class_bytes, table_parts
from tersor.bundle.dtypes import AnyArray, ByteArray

_NONE: ByteArray = np.empty(0, np.uint8)
# Of a block: its length, and what its lanes' states take beyond their information.
_BLOCK_BYTES = 4 + 3 * LANES
# Smaller chunks cannot pay for the tables of classes.
_MIN_CLASSED_SYMBOLS = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to code one chunk, and what it will take."""

    model: RansModel
    inline: bytes  # the model, in the chunk; empty where it is the stream's table
    row_symbols: int  # 0 where there is one table
    row_class: ByteArray  # empty where there is one table
    tables: ByteArray  # of each symbol; empty where there is one table
    patches: int
    stored_bytes: float


def learn_model(symbols: AnyArray, shape: StreamShape) -> RansModel:
    """Tables for a whole stream, from some of its chunks.

    Each symbol of the samples is counted once more in every class: what one class of the samples
    lacks may occur in the rest, and a patch takes four times the bits.
    """
    models = [
        _of_counts(counts + (counts.sum(axis=0) > 0), shape, columns)
        for counts, columns in _countings(symbols, shape)
    ]
    return min(models, key=lambda model: _cost(symbols, shape, model, model.pack()).stored_bytes)


def plan_chunk(symbols: AnyArray, shape: StreamShape, table: ByteArray | None) -> Plan:
    """The cheapest way to code a chunk."""
    countings = _countings(symbols, shape)
    if table is not None:
        # Classes of its own would have to find what the stream's table has found already.
        countings = countings[:1]
    models = [_of_counts(counts, shape, columns) for counts, columns in countings]
    plans = [_cost(symbols, shape, model, model.pack()) for model in models]
    if table is not None:
        plans.append(_cost(symbols, shape, RansModel.unpack(table), b""))
    return min(plans, key=lambda plan: plan.stored_bytes)


def _countings(symbols: AnyArray, shape: StreamShape) -> list[tuple[AnyArray, ByteArray]]:
    """Counts [tables, alphabet] and column classes: without classes, by row, by row and column."""
    alphabet = 1 << (8 * shape.symbol_bytes)
    width = shape.row_symbols
    counts = np.zeros((1, alphabet), np.int64)
    count_symbols(symbols, _NONE, counts)
    result = [(counts, _NONE)]
    by_step = width % LANES == 0  # only then are row classes as fast as none
    if (
        width == 0
        or symbols.size < _MIN_CLASSED_SYMBOLS
        or symbols.size % width
        or not (by_step or shape.column_classes)
    ):
        return result
    found = classify(symbols.reshape(-1, width), alphabet, columns=shape.column_classes)
    if found is None:
        return result
    if by_step:
        result.append((found.counts.sum(axis=1), _NONE))
    if shape.column_classes:
        result.append((found.counts.reshape(-1, alphabet), found.columns))
    return result


def _of_counts(counts: AnyArray, shape: StreamShape, columns: ByteArray) -> RansModel:
    rows = 1 if counts.shape[0] == 1 else ROW_CLASSES
    assert counts.shape[0] in {1, ROW_CLASSES, ROW_CLASSES * COLUMN_CLASSES}
    return RansModel.of_counts(counts, shape.symbol_bytes, row_classes=rows, columns=columns)


def _cost(symbols: AnyArray, shape: StreamShape, model: RansModel, inline: bytes) -> Plan:
    bits = model.bits()
    row_class, tables, width = _NONE, _NONE, 0
    if model.num_tables > 1:
        width = shape.row_symbols
        matrix = symbols.reshape(-1, width)
        row_class = assign_rows(matrix, model.columns, bits, model.row_classes)
        tables = np.empty(symbols.size, np.uint8)
        fill_tables(tables, 0, *table_parts(model, row_class, width))
    counts = np.zeros((model.num_tables, model.alphabet), np.int64)
    count_symbols(symbols, tables, counts)
    stored = (
        HEADER_BYTES
        + len(inline)
        + class_bytes(row_class.size, model.row_classes)
        + num_blocks(symbols.size) * _BLOCK_BYTES
        + float((counts * bits).sum()) / 8
    )
    return Plan(
        model=model,
        inline=inline,
        row_symbols=width,
        row_class=row_class,
        tables=tables,
        patches=int(counts[~model.has()].sum()),
        stored_bytes=stored,
    )
