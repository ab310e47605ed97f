"""From stored bytes to arrays: the part of reading that needs no file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np

from tersor.bundle.codecs import Codec
from tersor.bundle.digests import checksum
from tersor.bundle.dtypes import SYMBOL_LIMITS, AnyArray, ByteArray, Geometry
from tersor.bundle.errors import BundleCancelledError, BundleCorruptError, BundleLimitError
from tersor.bundle.filters import FILTERS, check_symbols
from tersor.bundle.manifest import Chunk, Plane, Stream

Cancelled = Callable[[], bool]


class Readable(Protocol):
    """Where stored bytes come from."""

    def read_into(self, offset: int, out: ByteArray) -> None:
        """Fills `out` with the bytes at `offset`; raises BundleError."""


class Workers:
    """A small pool of threads, started at its first use.

    Tasks never submit tasks, so waiting for them cannot deadlock. After `close` they run in the
    caller's thread.
    """

    def __init__(self, threads: int, name: str) -> None:
        self.threads = threads
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._lock = threading.Lock()

    def run(self, tasks: Sequence[Callable[[], None]], cancelled: Cancelled | None) -> None:
        """Runs all tasks; returns or raises only when none of them runs any more.

        Raises:
            BundleCancelledError: `cancelled()` was true before a task began.
            BundleError: the first error of a task, in the tasks' order.
        """
        stop = threading.Event()

        def guarded(task: Callable[[], None]) -> None:
            if stop.is_set():
                return
            try:
                check_cancelled(cancelled)
                task()
            except BaseException:
                stop.set()
                raise

        futures: list[Future[None]] = []
        if self.threads > 1 and len(tasks) > 1:
            with self._lock:
                # Submitted under the lock, so that `close` cannot come in between.
                if not self._closed:
                    self._pool = self._pool or ThreadPoolExecutor(self.threads, self._name)
                    futures = [self._pool.submit(guarded, task) for task in tasks]
        if not futures:
            for task in tasks:
                guarded(task)
            return
        try:
            errors = [future.exception() for future in futures]
        except BaseException:  # interrupted while waiting: the tasks still use the caller's memory
            stop.set()
            wait(futures)
            raise
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Ends the threads after their tasks. May be called twice."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)


def default_threads() -> int:
    """Threads for reading and writing: the processors this process may use, at most four."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(4, count))


def check_cancelled(cancelled: Cancelled | None) -> None:
    """Raises BundleCancelledError if the caller has cancelled."""
    if cancelled is not None and cancelled():
        raise BundleCancelledError("the read was cancelled")


@contextmanager
def memory_for(what: str, declared_bytes: int) -> Iterator[None]:
    """Says what did not fit: a file of a few MiB may declare far more than a machine has.

    Raises:
        BundleLimitError: instead of the MemoryError of an allocation inside the `with` block.
    """
    try:
        yield
    except MemoryError as error:
        raise BundleLimitError(
            f"{what} declares {declared_bytes} bytes in memory, more than could be allocated; "
            "free memory, or use a machine that has more"
        ) from error


def verify_chunk(stored: ByteArray, chunk: Chunk, describe: Callable[[], str]) -> None:
    """Raises BundleCorruptError unless the stored bytes have the chunk's checksum."""
    got = checksum(stored.data)
    if got != chunk.checksum:
        raise BundleCorruptError(
            f"{describe()} is damaged: {chunk.stored_bytes} bytes at offset {chunk.offset} have "
            f"xxh3 {got:016x}, expected {chunk.checksum:016x}; copy the bundle again"
        )


def describe_chunk(plane: Plane, stream: Stream, index: int) -> str:
    """How messages call a chunk."""
    return f"chunk {index} of stream {stream.name!r} of plane {plane.name!r}"


class BlockDecoder:
    """Verifies and decodes the blocks of one plane: chunk i of every stream, joined into rows."""

    def __init__(
        self,
        plane: Plane,
        codecs: Mapping[str, Codec],
        tables: Sequence[ByteArray | None] = (),
    ) -> None:
        """`tables` are the decoded tables of the plane's streams; needed only to decode."""
        self.plane = plane
        self.geometry = Geometry.of_plane(plane)
        self._codecs = codecs
        self._filter = FILTERS[plane.filter]
        self._limit = SYMBOL_LIMITS.get(plane.dtype)
        self._tables = tables

    def chunks(self, block: int) -> list[Chunk]:
        """The chunks of a block, one a stream."""
        return [stream.chunks[block] for stream in self.plane.streams]

    def stored_bytes(self, block: int) -> int:
        """Size of a block at rest."""
        return sum(chunk.stored_bytes for chunk in self.chunks(block))

    def is_memory(self, block: int) -> bool:
        """Whether a block's stored bytes are its symbols: no filter, no codec."""
        return self._filter.identity and self.plane.streams[0].chunks[block].codec == "raw"

    def verify(self, block: int, stored: ByteArray) -> None:
        """Raises BundleCorruptError unless every chunk of a block has its checksum."""
        at = 0
        for stream in self.plane.streams:
            chunk = stream.chunks[block]
            data = stored[at : at + chunk.stored_bytes]
            verify_chunk(data, chunk, partial(describe_chunk, self.plane, stream, block))
            at += chunk.stored_bytes

    def decode(self, block: int, stored: ByteArray, out: AnyArray) -> None:
        """Decodes a block's stored bytes, the chunks of its streams in order.

        Args:
            block: its number.
            stored: verified bytes; `out` itself where `is_memory`.
            out: one-dimensional, the block's symbols.

        Raises:
            BundleCorruptError: the bytes do not decode to what the manifest declares.
        """
        try:
            if self._filter.identity:
                chunk = self.plane.streams[0].chunks[block]
                raw = out.view(np.uint8)
                if not np.may_share_memory(raw, stored):
                    self._codecs[chunk.codec].decode_into(stored, raw, self._tables[0])
            else:
                streams = []
                at = 0
                for chunk, table in zip(self.chunks(block), self._tables, strict=True):
                    data = stored[at : at + chunk.stored_bytes]
                    codec = self._codecs[chunk.codec]
                    streams.append(codec.decode(data, chunk.raw_bytes, table))
                    at += chunk.stored_bytes
                rows = out.reshape(self.geometry.block_rows(block), -1)
                self._filter.join(self.plane.dtype, streams, rows)
            # Nibbles cannot hold more than 15 by construction.
            if self._limit is not None and self._filter.identity:
                check_symbols(out, self._limit)
        except BundleCorruptError as error:
            raise BundleCorruptError(
                f"block {block} of plane {self.plane.name!r} is damaged: {error}"
            ) from error


def runs(chunks: Sequence[Chunk]) -> Iterator[tuple[int, int]]:
    """Offset and size of the fewest reads that give the chunks' stored bytes in their order."""
    start = end = chunks[0].offset
    for chunk in chunks:
        if chunk.offset != end:
            yield start, end - start
            start = chunk.offset
        end = chunk.offset + chunk.stored_bytes
    yield start, end - start


def decode_tables(
    plane: Plane, stored: ByteArray, codecs: Mapping[str, Codec]
) -> tuple[ByteArray | None, ...]:
    """Verifies and decodes the tables of a plane's streams.

    Args:
        plane: whose streams may have tables.
        stored: their stored bytes, one after the other.
        codecs: by name.

    Raises:
        BundleCorruptError: a checksum does not match.
    """
    tables: list[ByteArray | None] = []
    at = 0
    for stream in plane.streams:
        chunk = stream.table
        if chunk is None:
            tables.append(None)
            continue
        data = stored[at : at + chunk.stored_bytes]
        at += chunk.stored_bytes
        verify_chunk(data, chunk, partial(describe_table, plane, stream))
        tables.append(codecs[chunk.codec].decode(data, chunk.raw_bytes))
    return tuple(tables)


def describe_table(plane: Plane, stream: Stream) -> str:
    """How messages call a table."""
    return f"the table of stream {stream.name!r} of plane {plane.name!r}"
