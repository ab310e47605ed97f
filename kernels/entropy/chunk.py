"""A chunk of the `rans` codec as tensors on the host: what the kernels' batches are packed from.

A chunk is symbols in blocks of BLOCK_SYMBOLS that decode independently. LANES decoders take turns
at a block's symbols, each with its own state, and share its 16-bit words (`reference.py` defines
how). A symbol's table is chosen by the class of its row and of its column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.checks import check_tensor
from tersor.kernels.errors import LayoutError

BLOCK_SYMBOLS = 1 << 16
LANES = 32
# States are in [2^16, 2^32) between steps. The encoder began, and decoding ends, at the lowest.
LOW = 1 << 16
MIN_PRECISION = 8
MAX_PRECISION = 15
MAX_TABLES = 16
MAX_SYMBOLS = 1 << 30
SYMBOL_DTYPES = (torch.uint8, torch.uint16)
_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RansTables:
    """What the 2^precision slots of every table mean. Chunks may share one."""

    precision: int
    codes: Tensor  # uint32 [tables << precision]: frequency << 16 | distance from the first slot
    values: Tensor  # uint8 or uint16 [tables << precision]: the symbol

    def __post_init__(self) -> None:
        """Raises LayoutError unless the tables are what a decoder relies on."""
        check_tensor("codes", self.codes, shape=(None,), dtypes=(torch.uint32,), device=_HOST)
        shape = (self.codes.numel(),)
        check_tensor("values", self.values, shape=shape, dtypes=SYMBOL_DTYPES, device=_HOST)
        if not MIN_PRECISION <= self.precision <= MAX_PRECISION:
            raise LayoutError(
                f"`precision` is {self.precision}, expected {MIN_PRECISION} to {MAX_PRECISION}"
            )
        size = 1 << self.precision
        if self.codes.numel() % size or not 1 <= self.count <= MAX_TABLES:
            raise LayoutError(
                f"`codes` has {self.codes.numel()} slots, expected 1 to {MAX_TABLES} tables of "
                f"{size}"
            )
        codes = self.codes.to(torch.int64)
        frequencies = codes >> 16
        if bool(((codes & 0xFFFF) >= frequencies).any()) or int(frequencies.max()) > size:
            raise LayoutError(
                f"`codes` has a slot beyond its symbol's, or a frequency above {size}"
            )

    @property
    def count(self) -> int:
        """How many tables there are."""
        return self.codes.numel() >> self.precision


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedChunk:
    """One chunk, every number checked: decoding it stays within its tensors."""

    symbols: int
    tables: RansTables
    words: Tensor  # uint16 [words], of all blocks in order
    word_ends: Tensor  # int64 [blocks], words up to the end of each block
    states: Tensor  # uint32 [blocks, LANES], what each lane starts from
    row_symbols: int  # symbols of a row; 0 where there is one table
    row_class: Tensor  # uint8 [rows], empty where there is one table
    column_classes: int  # a symbol's table is its row's class times this plus its column's class
    column_class: Tensor  # uint8 [row_symbols], empty where there is one column class
    patch_positions: Tensor  # int64 [patches], ascending: symbols that stand beside the coded ones
    patch_values: Tensor  # [patches], dtype as `tables.values`

    def __post_init__(self) -> None:
        """Raises LayoutError where one part does not fit the others."""
        if not 0 <= self.symbols <= MAX_SYMBOLS:
            raise LayoutError(f"`symbols` is {self.symbols}, expected 0 to {MAX_SYMBOLS}")
        self._check_words()
        self._check_classes()
        self._check_patches()

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.symbols // BLOCK_SYMBOLS)

    def _check_words(self) -> None:
        shape = (self.blocks, LANES)
        check_tensor("states", self.states, shape=shape, dtypes=(torch.uint32,), device=_HOST)
        check_tensor("words", self.words, shape=(None,), dtypes=(torch.uint16,), device=_HOST)
        check_tensor(
            "word_ends", self.word_ends, shape=shape[:1], dtypes=(torch.int64,), device=_HOST
        )
        ends = [0, *self.word_ends.tolist()]
        if ends != sorted(ends) or ends[-1] != self.words.numel():
            raise LayoutError(
                f"`word_ends` must ascend from 0 to the {self.words.numel()} words there are, "
                f"got {ends[1:4]} … {ends[-1]}"
            )

    def _check_classes(self) -> None:
        tables, kinds, width = self.tables.count, self.column_classes, self.row_symbols
        wide = kinds > 1 and width > MAX_SYMBOLS
        if kinds < 1 or tables % kinds or width < 0 or (tables > 1) != (width > 0) or wide:
            raise LayoutError(
                f"{tables} tables do not fit {kinds} column classes and rows of {width} symbols"
            )
        rows = -(-self.symbols // width) if width else 0
        columns = width if kinds > 1 else 0
        for name, classes, size, limit in (
            ("row_class", self.row_class, rows, tables // kinds),
            ("column_class", self.column_class, columns, kinds),
        ):
            check_tensor(name, classes, shape=(size,), dtypes=(torch.uint8,), device=_HOST)
            if size and int(classes.max()) >= limit:
                raise LayoutError(f"`{name}` holds {int(classes.max())}, expected below {limit}")

    def _check_patches(self) -> None:
        positions = self.patch_positions
        check_tensor(
            "patch_positions", positions, shape=(None,), dtypes=(torch.int64,), device=_HOST
        )
        dtypes = (self.tables.values.dtype,)
        check_tensor(
            "patch_values", self.patch_values, shape=positions.shape, dtypes=dtypes, device=_HOST
        )
        if positions.numel() and (
            int(positions[0]) < 0
            or int(positions[-1]) >= self.symbols
            or bool((positions.diff() <= 0).any())
        ):
            raise LayoutError(f"`patch_positions` must ascend within {self.symbols} symbols")
