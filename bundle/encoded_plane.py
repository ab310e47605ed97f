"""A plane's stored bytes in host memory, and the rows of a plane that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from tersor.bundle.codecs import Codec
from tersor.bundle.decoding import (
    BlockDecoder,
    Cancelled,
    Workers,
    check_cancelled,
    memory_for,
)
from tersor.bundle.dtypes import AnyArray, ByteArray, Geometry, numpy_dtype
from tersor.bundle.manifest import Plane
from tersor.bundle.phases import PhaseTimes, measured


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderContext:
    """What decoding needs of a reader: its codecs and its threads."""

    codecs: Mapping[str, Codec]
    workers: Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSelection:
    """Rows of a plane, and the blocks that cover them."""

    plane: Plane
    geometry: Geometry
    rows: tuple[int, int]
    blocks: range

    @classmethod
    def of(cls, plane: Plane, rows: tuple[int, int] | None) -> Self:
        """Selects rows [first, last), or all of them.

        Raises:
            ValueError: `rows` is not a range within the plane.
        """
        geometry = Geometry.of_plane(plane)
        first, last = (0, geometry.rows) if rows is None else rows
        if not 0 <= first <= last <= geometry.rows:
            raise ValueError(
                f"rows {rows} are not a range within the {geometry.rows} rows of plane "
                f"{plane.name!r}"
            )
        blocks = range(0)
        if geometry.num_chunks and first < last:
            blocks = range(first // plane.rows_per_chunk, -(-last // plane.rows_per_chunk))
        return cls(plane=plane, geometry=geometry, rows=(first, last), blocks=blocks)

    @property
    def symbols(self) -> int:
        """Symbols of all blocks."""
        return sum(self.geometry.symbols(index) for index in self.blocks)

    @property
    def raw_bytes(self) -> int:
        """Bytes of all blocks in memory."""
        return self.symbols * self.geometry.symbol_bytes

    def new_array(self) -> AnyArray:
        """An uninitialised one-dimensional array for all symbols of the blocks.

        Only address space until it is filled: memory is used up by blocks that were read and
        verified, never by what a manifest declares.
        """
        return np.empty(self.symbols, numpy_dtype(self.plane.dtype))

    def part(self, array: AnyArray, block: int) -> AnyArray:
        """The part of `new_array` that a block fills."""
        start = (block - self.blocks.start) * self.plane.rows_per_chunk * self.geometry.row_symbols
        return array[start : start + self.geometry.symbols(block)]

    def cut(self, array: AnyArray) -> AnyArray:
        """The selected rows of a filled `new_array`, in the plane's shape."""
        first, last = self.rows
        start = self.blocks.start * self.plane.rows_per_chunk if self.blocks else first
        row = self.geometry.row_symbols
        part = array[(first - start) * row : (last - start) * row]
        # A few rows must not keep their whole blocks alive.
        if 2 * part.size < array.size:
            part = part.copy()
        if not self.plane.shape:
            return part.reshape(()) if last > first else part
        return part.reshape(last - first, *self.plane.shape[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChunk:
    """The verified bytes of one chunk, and what decodes them."""

    codec: str
    stored: ByteArray
    raw_bytes: int  # that it decodes to
    table: ByteArray | None = None  # its stream's, if that has one


class EncodedPlane:
    """The stored bytes of a plane (or of the blocks of some rows) in host memory, verified.

    Independent of the reader's file: it may be decoded, any number of times and from any thread,
    after the reader was closed (then without its threads).
    """

    __slots__ = ("_context", "_selection", "_stored", "_tables")

    def __init__(
        self,
        selection: RowSelection,
        stored: ByteArray,
        tables: tuple[ByteArray | None, ...],
        context: ReaderContext,
    ) -> None:
        """Made by `BundleReader.fetch_plane`: `stored` holds the selection's blocks in order."""
        self._tables = tables
        self._selection = selection
        self._stored = stored
        self._context = context

    @property
    def plane(self) -> Plane:
        """The plane, as it stands in the manifest."""
        return self._selection.plane

    @property
    def stored_bytes(self) -> int:
        """Host memory that the stored bytes take."""
        return self._stored.size + sum(t.size for t in self._tables if t is not None)

    def chunks(self) -> list[list[StoredChunk]]:
        """The chunks of each stream, in order: of all blocks, or of those of the fetched rows."""
        selection = self._selection
        streams: list[list[StoredChunk]] = [[] for _ in selection.plane.streams]
        at = 0
        for block in selection.blocks:
            for number, stream in enumerate(selection.plane.streams):
                chunk = stream.chunks[block]
                streams[number].append(
                    StoredChunk(
                        codec=chunk.codec,
                        stored=self._stored[at : at + chunk.stored_bytes],
                        raw_bytes=chunk.raw_bytes,
                        table=self._tables[number],
                    )
                )
                at += chunk.stored_bytes
        return streams

    def decode_chunks(
        self, chunks: Sequence[StoredChunk], *, cancelled: Cancelled | None = None
    ) -> list[ByteArray]:
        """Decodes some of `chunks()`, several at once.

        Raises:
            BundleCorruptError: the bytes do not decode to what the manifest declares.
            BundleCancelledError: `cancelled()` became true.
        """
        decoded: dict[int, ByteArray] = {}

        def work(number: int, chunk: StoredChunk) -> None:
            codec = self._context.codecs[chunk.codec]
            decoded[number] = codec.decode(chunk.stored, chunk.raw_bytes, chunk.table)

        tasks = [partial(work, number, chunk) for number, chunk in enumerate(chunks)]
        self._context.workers.run(tasks, cancelled)
        return [decoded[number] for number in range(len(chunks))]

    def decode(
        self, *, times: PhaseTimes | None = None, cancelled: Cancelled | None = None
    ) -> AnyArray:
        """The plane, or its fetched rows, as a new array that the caller owns.

        Returns:
            dtype `numpy_dtype(plane.dtype)`, shape `plane.shape` (first dimension: fetched rows).

        Raises:
            BundleCorruptError: the bytes do not decode to what the manifest declares.
            BundleLimitError: the plane does not fit into memory.
            BundleCancelledError: `cancelled()` became true.
        """
        check_cancelled(cancelled)
        selection = self._selection
        with (
            measured(times, "decode"),
            memory_for(f"plane {selection.plane.name!r}", selection.raw_bytes),
        ):
            decoder = BlockDecoder(selection.plane, self._context.codecs, self._tables)
            array = selection.new_array()
            tasks: list[Callable[[], None]] = []
            at = 0
            for block in selection.blocks:
                size = decoder.stored_bytes(block)
                stored = self._stored[at : at + size]
                tasks.append(partial(decoder.decode, block, stored, selection.part(array, block)))
                at += size
            self._context.workers.run(tasks, cancelled)
            return selection.cut(array)
