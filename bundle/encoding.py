"""Choosing how to store: filter and tables by plane, codec by chunk, measured rather than guessed.

What is kept is always compared at its real size, and nothing is timed: a codec's speed is its rated
one, so that the same planes give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tersor.bundle import limits
from tersor.bundle.codecs import AUTO, BYTES, Codec, Draft, Encoder, StreamShape
from tersor.bundle.codecs.entropy.rans import COLUMN_CLASSES_MB_PER_SECOND
from tersor.bundle.digests import checksum, digest_bytes
from tersor.bundle.dtypes import AnyArray, ByteArray, Geometry
from tersor.bundle.errors import BundleWriteError
from tersor.bundle.filters import Filter, filters_for
from tersor.bundle.manifest import Chunk

# Codecs that decode slower on one core are not chosen by themselves: a weight is read many times.
DECODE_FLOOR_MB_PER_SECOND = 400

_SAMPLE_SLICES = 4
_SLICE_BYTES = 16 << 10
# String matchers within this factor of the best estimate are tried on the whole chunk.
_CLOSE = 1.03
# Decoding costs time, so an encoding must save at least this share of the raw bytes.
_MIN_SAVING = 1 / 128
# A plane that no filter makes smaller by this share stays as it is: it loads at memory speed.
_MIN_FILTER_SAVING = 1 / 256
# A table of the stream ties its chunks to it (equal chunks elsewhere are stored again), so it must
# save at least this share. Exponents save less with it, wide codes 1 to 3 %.
_MIN_TABLE_SAVING = 0.003
# Blocks of a plane on which filters and tables are compared.
_SAMPLE_BLOCKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """How the chunks of a stream are encoded."""

    shape: StreamShape
    table: ByteArray | None = None  # for all chunks
    table_codec: str = ""  # whose table it is

    def table_for(self, codec: str) -> ByteArray | None:
        """The table, if it is that codec's."""
        return self.table if codec == self.table_codec else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanePlan:
    """How a plane is encoded."""

    filter: Filter
    streams: tuple[StreamPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedChunk:
    """Stored bytes ready to be written."""

    data: bytes
    raw_bytes: int
    codec: str
    checksum: int  # xxh3-64 of data
    digest: str  # BLAKE3 of the raw bytes: finds equal chunks

    def at(self, offset: int) -> Chunk:
        """The chunk's manifest entry once its data stands at `offset`."""
        return Chunk(
            offset=offset,
            stored_bytes=len(self.data),
            raw_bytes=self.raw_bytes,
            checksum=self.checksum,
            codec=self.codec,
        )


class Chooser:
    """Picks filters, tables and codecs. Safe from many threads; deterministic."""

    def __init__(
        self,
        codecs: Mapping[str, Codec],
        codec: str,
        decode_floor: float = DECODE_FLOOR_MB_PER_SECOND,
    ) -> None:
        """`codec` is "auto", or the only codec to use besides raw (where it does not pay).

        `decode_floor` in MB/s: "auto" takes only codecs that are rated to decode as fast, and at
        `COLUMN_CLASSES_MB_PER_SECOND` or less a code may tell columns apart.

        Raises:
            BundleWriteError: there is no such codec, or the floor is no speed.
        """
        if codec != AUTO and codec not in codecs:
            raise BundleWriteError(
                f"unknown codec {codec!r}; expected {AUTO} or one of {', '.join(codecs)}"
            )
        if not 0 <= decode_floor < math.inf:  # false for NaN, too
            raise BundleWriteError(
                f"the slowest decoding speed to accept is {decode_floor} MB/s; expected a number, "
                "0 or more"
            )
        chosen = [codec] if codec != AUTO else [
            name
            for name, each in codecs.items()
            if each.in_auto and each.decode_mb_per_second >= decode_floor
        ]  # fmt: skip
        self._codecs = [codecs[name] for name in chosen if name != "raw"]
        self._column_classes = decode_floor <= COLUMN_CLASSES_MB_PER_SECOND

    def plan(self, dtype: str, rows: AnyArray, geometry: Geometry) -> PlanePlan:
        """Filter, shapes and tables of a plane, from a few of its blocks.

        `rows` is the whole plane, one-dimensional.
        """
        candidates = filters_for(dtype)
        if geometry.num_chunks == 0:
            return self._without_tables(candidates[0], dtype, geometry)
        blocks = _sample_blocks(rows, geometry)
        sizes = []
        for candidate in candidates:
            shapes = candidate.stream_shapes(dtype, geometry.row_symbols)
            split = [candidate.split(dtype, block) for block in blocks]
            sizes.append(
                sum(
                    self._estimate(stream, replace(shape, row_symbols=0))
                    for streams in split
                    for stream, shape in zip(streams, shapes, strict=True)
                )
            )
        raw_bytes = sum(block.nbytes for block in blocks)
        if min(sizes) >= raw_bytes * (1 - _MIN_FILTER_SAVING):
            return self.plan_filtered(candidates[0], dtype, rows, geometry)
        return self.plan_filtered(candidates[sizes.index(min(sizes))], dtype, rows, geometry)

    def plan_filtered(
        self, chosen: Filter, dtype: str, rows: AnyArray, geometry: Geometry
    ) -> PlanePlan:
        """Shapes and tables of a plane whose filter is chosen already."""
        plan = self._without_tables(chosen, dtype, geometry)
        count = geometry.num_chunks
        if count < 2:
            return plan
        split = [chosen.split(dtype, block) for block in _sample_blocks(rows, geometry)]
        streams = tuple(
            self._with_table(stream, samples, count)
            for stream, samples in zip(plan.streams, zip(*split, strict=True), strict=True)
        )
        return replace(plan, streams=streams)

    def encode(self, data: ByteArray, stream: StreamPlan) -> EncodedChunk:
        """The smallest encoding of one chunk of a stream."""
        limit = data.size - max(1, int(data.size * _MIN_SAVING))
        best: tuple[str, bytes] | None = None
        name, draft = self._best_draft(data, stream)
        for codec, encoder in self._shortlist(data, draft):
            stored = encoder(data, stream.shape, None)
            if len(stored) <= limit:
                best, limit = (codec, stored), len(stored) - 1
        # A draft's size is known to some tenths of a percent.
        if draft is not None and draft.stored_bytes <= limit * 1.005:
            stored = draft.finish()
            if len(stored) <= limit:
                best = (name, stored)
        codec, stored = best or ("raw", data.tobytes())
        return EncodedChunk(
            data=stored,
            raw_bytes=data.size,
            codec=codec,
            checksum=checksum(stored),
            digest=digest_bytes(data.data),
        )

    def _without_tables(self, chosen: Filter, dtype: str, geometry: Geometry) -> PlanePlan:
        shapes = chosen.stream_shapes(dtype, geometry.row_symbols)
        return PlanePlan(
            filter=chosen,
            streams=tuple(
                StreamPlan(shape=replace(shape, column_classes=self._column_classes))
                for shape in shapes
            ),
        )

    def _with_table(
        self, plan: StreamPlan, samples: Sequence[ByteArray], chunks: int
    ) -> StreamPlan:
        """The plan with a table for all chunks, where that is smaller than one in each."""
        name, _ = self._best_draft(samples[0], plan)
        codec = next((each for each in self._codecs if each.name == name), None)
        if codec is None:
            return plan
        alone = self._drafted(codec, samples, plan)
        if alone > sum(data.size for data in samples) * (1 - _MIN_SAVING):
            return plan
        table = codec.learn(samples, plan.shape)
        if table is None:
            return plan
        together = replace(plan, table=table, table_codec=name)
        share = chunks / len(samples)
        size = self._drafted(codec, samples, together) * share + table.size
        return together if size < alone * share * (1 - _MIN_TABLE_SAVING) else plan

    @staticmethod
    def _drafted(codec: Codec, samples: Sequence[ByteArray], plan: StreamPlan) -> float:
        table = plan.table_for(codec.name)
        drafts = [codec.draft(data, plan.shape, table) for data in samples]
        return sum(draft.stored_bytes for draft in drafts if draft is not None)

    def _best_draft(self, data: ByteArray, stream: StreamPlan) -> tuple[str, Draft | None]:
        """The smallest of the encodings whose sizes are known before the work."""
        best: tuple[str, Draft | None] = ("", None)
        for codec in self._codecs:
            draft = codec.draft(data, stream.shape, stream.table_for(codec.name))
            if draft is not None and (best[1] is None or draft.stored_bytes < best[1].stored_bytes):
                best = (codec.name, draft)
        return best

    def _matchers(self) -> list[tuple[str, Encoder]]:
        """The encoders that have to be tried."""
        return [
            (codec.name, encoder)
            for codec in self._codecs
            if not codec.drafts
            for encoder in codec.encoders
        ]

    def _shortlist(self, data: ByteArray, draft: Draft | None) -> Sequence[tuple[str, Encoder]]:
        """The encoders that may be the smallest, judged on a sample of a large chunk."""
        encoders = self._matchers()
        sample = _sample(data)
        if sample.size == data.size or (len(encoders) < 2 and draft is None):
            return encoders
        sizes = [len(encoder(sample, BYTES, None)) / sample.size for _, encoder in encoders]
        if draft is not None:
            sizes.append(draft.stored_bytes / data.size)
        best = min(sizes)
        if best > 1 - _MIN_SAVING:
            return ()
        return [
            entry for entry, size in zip(encoders, sizes, strict=False) if size <= best * _CLOSE
        ]

    def _estimate(self, data: ByteArray, shape: StreamShape) -> float:
        """About how many bytes `encode` would store."""
        sample = _sample(data)
        share = data.size / sample.size
        sizes = [len(encoder(sample, BYTES, None)) * share for _, encoder in self._matchers()]
        _, draft = self._best_draft(data, StreamPlan(shape=shape))
        if draft is not None:
            sizes.append(draft.stored_bytes)
        return min([*sizes, float(data.size)])


def block_target(plane_bytes: int) -> int:
    """Raw bytes to aim for in one block of a plane of `plane_bytes`."""
    share = plane_bytes // limits.TARGET_BLOCKS_PER_PLANE
    return max(limits.TARGET_BLOCK_RAW_BYTES, min(share, limits.MAX_TARGET_BLOCK_RAW_BYTES))


def block_of(rows: AnyArray, geometry: Geometry, index: int) -> AnyArray:
    """The rows of one chunk, [rows, row symbols]: a view of the one-dimensional plane."""
    first, last = geometry.row_range(index)
    block = rows[first * geometry.row_symbols : last * geometry.row_symbols]
    return block.reshape(last - first, geometry.row_symbols)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, spread evenly."""
    return sorted({at * count // most for at in range(most)}) if count else []


def _sample_blocks(rows: AnyArray, geometry: Geometry) -> list[AnyArray]:
    picked = spread(geometry.num_chunks, _SAMPLE_BLOCKS)
    return [block_of(rows, geometry, index) for index in picked]


def _sample(data: ByteArray) -> ByteArray:
    """The whole of a small chunk; slices spread evenly over a large one."""
    if data.size <= 2 * _SAMPLE_SLICES * _SLICE_BYTES:
        return data
    step = (data.size - _SLICE_BYTES) // (_SAMPLE_SLICES - 1)
    return np.concatenate(
        [data[at * step : at * step + _SLICE_BYTES] for at in range(_SAMPLE_SLICES)]
    )
