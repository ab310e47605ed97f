"""A stored chunk of the rANS codec: its sections, checked, for whoever decodes them."""

from __future__ import annotations

import numpy as np

from tersor.bundle.codecs.entropy.layout import (
    LANES,
    ChunkHeader,
    Sections,
    chunk_model,
    num_blocks,
    raw_symbols,
    symbol_kind,
)
from tersor.bundle.codecs.entropy.patches import apply_patches
from tersor.bundle.codecs.entropy.rans_model import RansModel, table_parts, unpack_classes
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError

MIN_STATE = 1 << 16
_NO_TABLES: ByteArray = np.empty(0, np.uint8)


class RansChunk:
    """A chunk's sections, checked against each other; nothing is decoded yet.

    Immutable. It keeps a view of the stored bytes, and `words` is one.
    """

    def __init__(self, stored: ByteArray, raw_bytes: int, table: ByteArray | None) -> None:
        """Raises BundleCorruptError where a section does not fit the others."""
        sections = Sections(stored, "a rANS chunk")
        header = ChunkHeader.unpack(sections)
        self._stored = stored
        self._symbols = raw_symbols(raw_bytes, header)
        self._packed_model = chunk_model(sections, header, table)
        self._model = RansModel.unpack(self._packed_model)
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
        # From such a state one word may not lead back to 2^16: decoders would have to loop.
        if self._states.min(initial=MIN_STATE) < MIN_STATE:
            raise BundleCorruptError(
                f"a state of a rANS chunk is {int(self._states.min())}; expected at least "
                f"{MIN_STATE}"
            )
        self._words_at = sections.at
        sections.take(2 * int(self._ends[-1]) if blocks else 0)
        sections.pad()
        self._positions = sections.array("<u4", header.patches)
        self._values = sections.array(f"<u{header.symbol_bytes}", header.patches)
        sections.finish()

    @property
    def symbols(self) -> int:
        """How many symbols it decodes to."""
        return self._symbols

    @property
    def model(self) -> RansModel:
        """The tables."""
        return self._model

    @property
    def packed_model(self) -> ByteArray:
        """The bytes of the model: the chunk's own, or its stream's table."""
        return self._packed_model

    @property
    def row_symbols(self) -> int:
        """Symbols of a row; 0 where there is one table."""
        return self._row_symbols

    @property
    def row_class(self) -> ByteArray:
        """The class of each row; empty where there is one table."""
        return self._row_class

    @property
    def ends(self) -> AnyArray:
        """uint32 [blocks], words up to the end of each block; ascending."""
        return self._ends

    @property
    def states(self) -> AnyArray:
        """uint32 [blocks, LANES], what each lane starts from."""
        return self._states

    @property
    def words(self) -> AnyArray:
        """uint16, of all blocks in order; at whatever address the chunk has them."""
        size = 2 * int(self._ends[-1]) if self._ends.size else 0
        words: AnyArray = self._stored[self._words_at : self._words_at + size].view("<u2")
        return words

    @property
    def patches(self) -> tuple[AnyArray, AnyArray]:
        """Positions, uint32, and values of the symbols beside the coded ones.

        Positions are not checked here: `decode_into` refuses those that do not ascend within the
        chunk.
        """
        return self._positions, self._values

    def decode_into(self, out: ByteArray) -> None:
        """Fills `out`. Raises BundleCorruptError if the words do not decode to it exactly."""
        from tersor.bundle.codecs.entropy.rans_compiled import decode_blocks

        model = self._model
        symbols = out.view(symbol_kind(model.symbol_bytes))
        codes, values = model.slots()
        rows, columns, width = _NO_TABLES, _NO_TABLES, 1
        if model.num_tables > 1:
            # A row may be declared longer than the chunk: memory only for what there is of it.
            width = min(self._row_symbols, self._symbols)
            rows, columns, width = table_parts(model, self._row_class, width)
        # Row classes alone, and rows of whole steps: then every step has one table.
        uniform = model.column_classes == 1 and self._row_symbols % LANES == 0
        failed = decode_blocks(
            self._stored, self._words_at, self._ends, self._states, rows, columns, width,
            codes, values, model.precision, uniform, symbols,
        )  # fmt: skip
        if failed >= 0:
            raise BundleCorruptError(f"block {failed} of a rANS chunk does not decode")
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
