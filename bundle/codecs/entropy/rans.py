"""rANS: a static table, 32 interleaved lanes, within 0.3 % of the entropy of its tables.

Asymmetric numeral systems in their range variant (Duda, arXiv 1311.2540, section 2.3) with 32-bit
states and 16-bit words; the lanes share one stream of words (Giesen, arXiv 1402.3392), which a warp
can follow as well as a scalar core. `docs/format.md` has the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tersor.bundle.codecs.base import Codec, Draft, Encoder, StreamShape
from tersor.bundle.codecs.entropy.layout import (
    BLOCK_SYMBOLS,
    LANES,
    ChunkHeader,
    Sections,
    chunk_model,
    num_blocks,
    padded,
    raw_symbols,
    symbol_kind,
    symbols_of,
)
from tersor.bundle.codecs.entropy.patches import apply_patches, take_out
from tersor.bundle.codecs.entropy.rans_model import (
    RansModel,
    pack_classes,
    table_parts,
    unpack_classes,
)
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError

if TYPE_CHECKING:
    from tersor.bundle.codecs.entropy.rans_plan import Plan

# What decoding slows down to where columns have classes: each symbol looks its table up.
COLUMN_CLASSES_MB_PER_SECOND = 300

_NO_TABLES: ByteArray = np.empty(0, np.uint8)


class RansCodec(Codec):
    """Blocks of 65536 symbols that decode independently, on a CPU or a GPU."""

    name = "rans"
    # A block of 65536 two-byte symbols that are all alike still has 132 bytes of states and length.
    max_ratio = 1 << 10
    decode_mb_per_second = 600
    drafts = True

    @property
    def encoders(self) -> Sequence[Encoder]:
        return (lambda data, shape, table: self.draft(data, shape, table).finish(),)

    def learn(self, samples: Sequence[ByteArray], shape: StreamShape) -> ByteArray | None:
        from tersor.bundle.codecs.entropy.rans_plan import learn_model

        symbols = np.concatenate([symbols_of(data, shape.symbol_bytes) for data in samples])
        return np.frombuffer(learn_model(symbols, shape).pack(), np.uint8)

    def draft(self, data: ByteArray, shape: StreamShape, table: ByteArray | None) -> Draft:
        from tersor.bundle.codecs.entropy.rans_plan import plan_chunk

        symbols = symbols_of(data, shape.symbol_bytes)
        plan = plan_chunk(symbols, shape, table)
        return Draft(stored_bytes=plan.stored_bytes, finish=partial(_encode, symbols, plan))

    def decode(
        self, stored: ByteArray, raw_bytes: int, table: ByteArray | None = None
    ) -> ByteArray:
        chunk = _Chunk(stored, raw_bytes, table)
        out = np.empty(raw_bytes, np.uint8)
        chunk.decode_into(out)
        return out

    def decode_into(
        self, stored: ByteArray, out: ByteArray, table: ByteArray | None = None
    ) -> None:
        _Chunk(stored, out.size, table).decode_into(out)


def _encode(symbols: AnyArray, plan: Plan) -> bytes:
    from tersor.bundle.codecs.entropy.rans_compiled import encode_blocks

    model = plan.model
    tables = plan.tables
    codes = model.codes()
    coded, positions, values = symbols, np.empty(0, np.int64), symbols[:0]
    if plan.patches:
        coded, positions, values = take_out(
            symbols, tables, codes >> 16, (codes >> 16).argmax(axis=1)
        )
    blocks = num_blocks(symbols.size)
    ends = np.empty(blocks, np.uint32)
    states = np.empty((blocks, LANES), np.uint32)
    words = np.empty(symbols.size, np.uint16)
    count = encode_blocks(
        coded, tables, codes.reshape(-1), model.alphabet, model.precision, ends, states, words
    )
    header = ChunkHeader(
        symbol_bytes=model.symbol_bytes,
        row_symbols=plan.row_symbols,
        model_bytes=len(plan.inline),
        patches=positions.size,
    )
    return b"".join(
        [
            header.pack(),
            plan.inline,
            padded(pack_classes(plan.row_class, model.row_classes)),
            ends.astype("<u4").tobytes(),
            states.astype("<u4").tobytes(),
            padded(words[:count].astype("<u2").tobytes()),
            positions.astype("<u4").tobytes(),
            padded(values.astype(f"<u{model.symbol_bytes}").tobytes()),
        ]
    )


class _Chunk:
    """A chunk's sections, checked; nothing is decoded yet."""

    def __init__(self, stored: ByteArray, raw_bytes: int, table: ByteArray | None) -> None:
        """Raises BundleCorruptError where a section does not fit the others."""
        sections = Sections(stored, "a rANS chunk")
        header = ChunkHeader.unpack(sections)
        self._stored = stored
        self._symbols = raw_symbols(raw_bytes, header)
        self._model = RansModel.unpack(chunk_model(sections, header, table))
        if self._model.symbol_bytes != header.symbol_bytes:
            raise BundleCorruptError(
                f"a rANS chunk has symbols of {header.symbol_bytes} bytes, its model of "
                f"{self._model.symbol_bytes}"
            )
        self._row_symbols = header.row_symbols
        self._row_class = self._rows(sections)
        blocks = num_blocks(self._symbols)
        self._ends = sections.array("<u4", blocks)
        self._states = sections.array("<u4", blocks * LANES).reshape(blocks, LANES)
        if (np.diff(self._ends.astype(np.int64)) < 0).any():
            raise BundleCorruptError("the blocks of a rANS chunk do not follow each other")
        self._words_at = sections.at
        sections.take(2 * int(self._ends[-1]))
        sections.pad()
        self._positions = sections.array("<u4", header.patches)
        self._values = sections.array(f"<u{header.symbol_bytes}", header.patches)
        sections.finish()

    def decode_into(self, out: ByteArray) -> None:
        """Fills `out`. Raises BundleCorruptError if the words do not decode to it exactly."""
        from tersor.bundle.codecs.entropy.rans_compiled import decode_block, fill_tables

        model = self._model
        symbols = out.view(symbol_kind(model.symbol_bytes))
        codes, values = model.slots()
        ids = _NO_TABLES
        if model.num_tables > 1:
            parts = table_parts(model, self._row_class, self._row_symbols)
            ids = np.empty(min(BLOCK_SYMBOLS, symbols.size), np.uint8)
        # Row classes alone, and rows of whole steps: then every step has one table.
        uniform = model.column_classes == 1 and self._row_symbols % LANES == 0
        start = self._words_at
        for block in range(self._ends.size):
            end = self._words_at + 2 * int(self._ends[block])
            first = block * BLOCK_SYMBOLS
            part = symbols[first : first + BLOCK_SYMBOLS]
            if model.num_tables > 1:
                fill_tables(ids[: part.size], first, *parts)
            if not decode_block(
                self._stored, start, end, self._states[block], ids[: part.size],
                codes, values, model.precision, part, uniform,
            ):  # fmt: skip
                raise BundleCorruptError(f"block {block} of a rANS chunk does not decode")
            start = end
        apply_patches(symbols, self._positions, self._values)

    def _rows(self, sections: Sections) -> ByteArray:
        """The class of each row, where the model has classes."""
        model, width = self._model, self._row_symbols
        if (model.num_tables > 1) != (width > 0):
            raise BundleCorruptError(
                f"a rANS chunk has rows of {width} symbols and {model.num_tables} tables"
            )
        if width == 0:
            return _NO_TABLES
        if model.columns.size not in {0, width}:
            raise BundleCorruptError(
                f"a rANS chunk has rows of {width} symbols, its model {model.columns.size} columns"
            )
        return unpack_classes(sections, -(-self._symbols // width), model.row_classes)


__all__ = ["RansCodec"]
