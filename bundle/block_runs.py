"""Which blocks are read together, and the reads that give their chunks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from tersor.bundle.decoding import BlockDecoder, Cancelled, runs
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.manifest import Chunk
from tersor.bundle.sources import ByteSource


def split_runs(decoder: BlockDecoder, blocks: range, max_bytes: int) -> list[range]:
    """Cuts blocks into runs of at most `max_bytes` stored bytes, of one block at least.

    The blocks of a run are all their own symbols (`is_memory`), or none of them is.
    """
    parts: list[range] = []
    held = 0
    for block in blocks:
        size = decoder.stored_bytes(block)
        last = parts[-1] if parts else None
        if (
            last is not None
            and held + size <= max_bytes
            and decoder.is_memory(block) == decoder.is_memory(last.start)
        ):
            parts[-1] = range(last.start, block + 1)
            held += size
        else:
            parts.append(range(block, block + 1))
            held = size
    return parts


class ChunkReads:
    """The reads that give the stored bytes of some chunks, one after the other.

    A local source is read in the order of the chunks. From a remote one every byte is asked for
    once, in the order of the file, and what shared chunks interrupt is put together in memory:
    `scratch_bytes` beside the result, 0 where none are needed.
    """

    def __init__(self, source: ByteSource, chunks: Sequence[Chunk]) -> None:
        self._source = source
        self._chunks = chunks
        self._extents = list(runs(chunks)) if chunks else []
        self.scratch_bytes = 0
        if source.is_remote and len(self._extents) > 1:
            joined = _joined(chunks)
            if len(joined) < len(self._extents):
                self._extents = joined
                self.scratch_bytes = sum(size for _, size in joined)

    @property
    def stored_bytes(self) -> int:
        """Of the chunks."""
        return sum(chunk.stored_bytes for chunk in self._chunks)

    def view(self) -> ByteArray | None:
        """The stored bytes without reading them, if they are in one piece in memory."""
        if not self._source.has_views or len(self._extents) != 1:
            return None
        return self._source.view(*self._extents[0])

    def load(self) -> ByteArray:
        """The stored bytes: a view where there is one, else read into a new array."""
        data = self.view()
        if data is None:
            data = np.empty(self.stored_bytes, np.uint8)
            self.read_into(data, None)
        return data

    def read_into(self, out: ByteArray, cancelled: Cancelled | None) -> None:
        """Fills `out`, which is as long as the chunks. Raises as the source."""
        if not self.scratch_bytes:
            self._read(out, cancelled)
            return
        scratch = np.empty(self.scratch_bytes, np.uint8)
        places = self._read(scratch, cancelled)
        offsets = [offset for offset, _ in self._extents]
        at = 0
        for chunk in self._chunks:
            number = bisect_right(offsets, chunk.offset) - 1
            start = places[number] + chunk.offset - offsets[number]
            part = scratch[start : start + chunk.stored_bytes]
            out[at : at + part.size] = part
            at += part.size

    def _read(self, out: ByteArray, cancelled: Cancelled | None) -> list[int]:
        """Reads the extents one after the other into `out`; returns where each begins there."""
        places = []
        at = 0
        for offset, size in self._extents:
            places.append(at)
            self._source.read_into(offset, out[at : at + size], cancelled=cancelled)
            at += size
        return places


def _joined(chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
    """Offset and size of the extents that chunks cover, in the order of the file."""
    # Chunks are equal or apart: validated when the bundle was opened.
    apart = {chunk.offset: chunk for chunk in chunks}
    return list(runs([apart[offset] for offset in sorted(apart)]))
