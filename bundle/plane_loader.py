"""Brings planes from a source into memory: which blocks at once, and how many bytes in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import accumulate
from typing import Final

import numpy as np

from tersor.bundle.block_runs import ChunkReads, split_runs
from tersor.bundle.decoding import (
    BlockDecoder,
    Cancelled,
    check_cancelled,
    decode_tables,
    memory_for,
)
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.encoded_plane import ReaderContext, RowSelection
from tersor.bundle.phases import PhaseTimes, measured, shared
from tersor.bundle.sources import ByteSource
from tersor.bundle.window import ByteWindow

# Runs of blocks that one task reads, at most: enough that the pool costs nothing beside them.
_MAX_TASK_RUNS: Final = 8
# Bytes of one request, at most: at 100 MB/s the 30 ms until its first byte are a sixth of its time.
# Larger ones gain little, and decoding begins only when one is whole.
MAX_RUN_BYTES: Final = 16 << 20

Tables = tuple[ByteArray | None, ...]


class PlaneLoader:
    """Reads, verifies and decodes blocks, several at once. Safe from many threads.

    A remote source is asked once for each run of blocks, at most a thread's share of the window;
    any other is read block by block, so that a block is verified and decoded while it is in the
    cache.
    """

    def __init__(self, source: ByteSource, context: ReaderContext, window: ByteWindow) -> None:
        self._source = source
        self._context = context
        self._window = window
        share = window.window_bytes // max(1, context.workers.threads)
        self._run_bytes = min(share, MAX_RUN_BYTES) if source.is_remote else 0

    def fetch(
        self, selection: RowSelection, times: PhaseTimes | None, cancelled: Cancelled | None
    ) -> tuple[ByteArray, Tables]:
        """The stored bytes of the selection's blocks in order, verified, and the plane's tables.

        They are read straight into the result, which a source with views makes read-only.
        """
        sizes = map(
            BlockDecoder(selection.plane, self._context.codecs).stored_bytes, selection.blocks
        )
        starts = [0, *accumulate(sizes)]
        with self._loading(selection, starts[-1]):
            decoder, tables = self._decoder(selection, times, cancelled)
            view = self._reads(decoder, selection.blocks).view() if self._source.has_views else None
            stored = np.empty(starts[-1], np.uint8) if view is None else view
            first = selection.blocks.start

            def work(blocks: range, busy: PhaseTimes | None) -> None:
                part = stored[starts[blocks.start - first] : starts[blocks.stop - first]]
                if view is None:
                    self._read(self._reads(decoder, blocks), part, busy, cancelled)
                _verify(decoder, blocks, part, busy)

            self._run(decoder, selection.blocks, work, times, cancelled)
        return stored, tables

    def read(
        self, selection: RowSelection, times: PhaseTimes | None, cancelled: Cancelled | None
    ) -> AnyArray:
        """The selected rows, decoded."""
        with self._loading(selection, selection.raw_bytes):
            decoder, _ = self._decoder(selection, times, cancelled)
            array = selection.new_array()

            def work(blocks: range, busy: PhaseTimes | None) -> None:
                place = _part(selection, array, blocks) if decoder.is_memory(blocks.start) else None
                with self._stored(self._reads(decoder, blocks), place, busy, cancelled) as stored:
                    _verify(decoder, blocks, stored, busy)
                    with measured(busy, "decode"):
                        for block, data in _cut(decoder, blocks, stored):
                            decoder.decode(block, data, selection.part(array, block))

            self._run(decoder, selection.blocks, work, times, cancelled)
            return selection.cut(array)

    @contextmanager
    def _loading(self, selection: RowSelection, declared_bytes: int) -> Iterator[None]:
        """Keeps the source open, and says what does not fit into memory."""
        with (
            memory_for(f"plane {selection.plane.name!r}", declared_bytes),
            self._source.using(),
        ):
            yield

    def _decoder(
        self, selection: RowSelection, times: PhaseTimes | None, cancelled: Cancelled | None
    ) -> tuple[BlockDecoder, Tables]:
        """A decoder with the tables that the plane's streams share: a few KiB, read first."""
        plane, codecs = selection.plane, self._context.codecs
        chunks = [stream.table for stream in plane.streams if stream.table is not None]
        if not chunks:
            tables: Tables = (None,) * len(plane.streams)
            return BlockDecoder(plane, codecs, tables), tables
        stored = np.empty(sum(chunk.stored_bytes for chunk in chunks), np.uint8)
        self._read(ChunkReads(self._source, chunks), stored, times, cancelled)
        with measured(times, "verify"):
            tables = decode_tables(plane, stored, codecs)
        return BlockDecoder(plane, codecs, tables), tables

    def _run(
        self,
        decoder: BlockDecoder,
        blocks: range,
        work: Callable[[range, PhaseTimes | None], None],
        times: PhaseTimes | None,
        cancelled: Cancelled | None,
    ) -> None:
        """Works on all blocks, several runs at once."""

        def work_on(some: list[range], busy: PhaseTimes | None) -> None:
            for part in some:
                check_cancelled(cancelled)
                work(part, busy)

        workers = self._context.workers
        parts = split_runs(decoder, blocks, self._run_bytes)
        step = -(-len(parts) // (2 * workers.threads))
        step = max(1, min(step, _MAX_TASK_RUNS))
        with shared(times) as busy:
            workers.run(
                [
                    partial(work_on, parts[start : start + step], busy)
                    for start in range(0, len(parts), step)
                ],
                cancelled,
            )

    @contextmanager
    def _stored(
        self,
        reads: ChunkReads,
        place: ByteArray | None,
        busy: PhaseTimes | None,
        cancelled: Cancelled | None,
    ) -> Iterator[ByteArray]:
        """The stored bytes of a run: a view, in their place in the result, or in the window."""
        stored = reads.view()
        if stored is not None:
            yield stored
        elif place is not None:
            self._read(reads, place, busy, cancelled)
            yield place
        else:
            with self._window.hold(reads.stored_bytes + reads.scratch_bytes, cancelled):
                stored = np.empty(reads.stored_bytes, np.uint8)
                with measured(busy, "read"):
                    reads.read_into(stored, cancelled)
                yield stored

    def _read(
        self,
        reads: ChunkReads,
        out: ByteArray,
        busy: PhaseTimes | None,
        cancelled: Cancelled | None,
    ) -> None:
        """Reads into what is part of a result: only scratch memory is in flight."""
        scratch = reads.scratch_bytes
        window = self._window.hold(scratch, cancelled) if scratch else nullcontext()
        with window, measured(busy, "read"):
            reads.read_into(out, cancelled)

    def _reads(self, decoder: BlockDecoder, blocks: range) -> ChunkReads:
        chunks = [chunk for block in blocks for chunk in decoder.chunks(block)]
        return ChunkReads(self._source, chunks)


def _part(selection: RowSelection, array: AnyArray, blocks: range) -> ByteArray:
    """The part of the selection's array that consecutive blocks fill, as bytes."""
    geometry = selection.geometry
    skipped = (blocks.start - selection.blocks.start) * selection.plane.rows_per_chunk
    start = skipped * geometry.row_symbols
    return array[start : start + sum(map(geometry.symbols, blocks))].view(np.uint8)


def _cut(
    decoder: BlockDecoder, blocks: range, stored: ByteArray
) -> Iterator[tuple[int, ByteArray]]:
    """Each block and its stored bytes."""
    at = 0
    for block in blocks:
        size = decoder.stored_bytes(block)
        yield block, stored[at : at + size]
        at += size


def _verify(
    decoder: BlockDecoder, blocks: range, stored: ByteArray, busy: PhaseTimes | None
) -> None:
    with measured(busy, "verify"):
        for block, data in _cut(decoder, blocks, stored):
            decoder.verify(block, data)
