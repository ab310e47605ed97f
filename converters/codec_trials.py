"""One codec on blocks of one plane: encoded, decoded, compared, weighed and timed.

The blocks go through the very code that writes and loads bundles (`Chooser`, `BlockDecoder`), so
that a codec gets the filter, the tables and the raw chunks that it would get there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import cast

import numpy as np

from tersor.bundle.codecs import AUTO, Codec, ZstdCodec
from tersor.bundle.codecs.entropy.rans import COLUMN_CLASSES_MB_PER_SECOND, RansCodec
from tersor.bundle.decoding import BlockDecoder
from tersor.bundle.dtypes import AnyArray, ByteArray, Geometry, numpy_dtype
from tersor.bundle.encoding import Chooser, EncodedChunk, PlanePlan, block_of
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.filters import FILTERS, Filter
from tersor.bundle.manifest import Plane, Stream
from tersor.converters.errors import RoundTripError

RANS_COLUMNS = f"{RansCodec.name}, columns"

_NO_FILTER = FILTERS["none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One way to store: a codec by itself, or the writer's own choice."""

    name: str
    chooser: Chooser


def all_trials(codecs: Mapping[str, Codec]) -> tuple[Trial, ...]:
    """Every codec by itself, rANS also with classes of columns, and what a writer would do."""
    trials: list[Trial] = []
    for name in codecs:
        trials.append(Trial(name=name, chooser=Chooser(codecs, name)))
        if name == RansCodec.name:
            chooser = Chooser(codecs, name, COLUMN_CLASSES_MB_PER_SECOND)
            trials.append(Trial(name=RANS_COLUMNS, chooser=chooser))
    return (*trials, Trial(name=AUTO, chooser=Chooser(codecs, AUTO)))


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one trial has done so far on the planes of one kind."""

    raw_bytes: int = 0
    stored_bytes: float = 0.0  # with the blocks' share of tables that whole streams have
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    filters: Counter[str] = field(default_factory=Counter)  # raw bytes by filter
    codecs: Counter[str] = field(default_factory=Counter)  # raw bytes by codec of the chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPlane:
    """A plane, and those of its blocks that are measured."""

    dtype: str
    flat: AnyArray  # the whole plane, one-dimensional
    geometry: Geometry
    blocks: Sequence[int]

    def block(self, index: int) -> AnyArray:
        """The rows of a block, [rows, row symbols]."""
        return block_of(self.flat, self.geometry, index)

    @property
    def sampled_bytes(self) -> int:
        """Bytes in memory of the measured blocks."""
        return sum(self.geometry.symbols(i) for i in self.blocks) * self.geometry.symbol_bytes


class Laboratory:
    """Runs trials in the caller's thread."""

    def __init__(
        self, codecs: Mapping[str, Codec], *, repetitions: int, clock: Callable[[], float]
    ) -> None:
        self._codecs = codecs
        self._repetitions = repetitions
        self._clock = clock

    def whole(self, trial: Trial, plane: SampledPlane, tally: Tally) -> Filter:
        """Stores blocks with the filter that suits the trial's codec; the filter."""
        plan = trial.chooser.plan(plane.dtype, plane.flat, plane.geometry)
        for index in plane.blocks:
            block = plane.block(index)
            self._block(
                trial,
                plan,
                plane.dtype,
                block,
                partial(plan.filter.split, plane.dtype, block),
                tally,
            )
        tally.filters[plan.filter.name] += plane.sampled_bytes
        self._add_tables(plan, plane, tally)
        return plan.filter

    def streams(
        self, trial: Trial, plane: SampledPlane, chosen: Filter, tallies: Sequence[Tally]
    ) -> None:
        """Stores each stream of a filter by itself; the filter's own work is not timed."""
        plan = trial.chooser.plan_filtered(chosen, plane.dtype, plane.flat, plane.geometry)
        alone = [PlanePlan(filter=_NO_FILTER, streams=(stream,)) for stream in plan.streams]
        for index in plane.blocks:
            streams = chosen.split(plane.dtype, plane.block(index))
            for each, stream, tally in zip(alone, streams, tallies, strict=True):
                data = stream.reshape(1, -1)
                self._block(trial, each, "u8", data, partial(_only, stream), tally)
        for each, tally in zip(alone, tallies, strict=True):
            self._add_tables(each, plane, tally)

    def _block(
        self,
        trial: Trial,
        plan: PlanePlan,
        dtype: str,
        block: AnyArray,
        split: Callable[[], Sequence[ByteArray]],
        tally: Tally,
    ) -> None:
        def encode() -> list[EncodedChunk]:
            return [
                trial.chooser.encode(stream, how)
                for stream, how in zip(split(), plan.streams, strict=True)
            ]

        # The first run is not timed: it compiles what numba compiles, and its result is checked.
        encoded = encode()
        stored = np.frombuffer(b"".join(chunk.data for chunk in encoded), np.uint8)
        tables = [stream.table for stream in plan.streams]
        decoder = BlockDecoder(_as_plane(plan, dtype, block, encoded), self._codecs, tables)
        out = np.empty(block.size, numpy_dtype(dtype))
        decode = partial(decoder.decode, 0, stored, out)
        _check(trial, dtype, decode, block, out)
        tally.encode_seconds += self._seconds(encode)
        tally.decode_seconds += self._seconds(decode)
        tally.raw_bytes += block.nbytes
        tally.stored_bytes += stored.size
        total = sum(chunk.raw_bytes for chunk in encoded)
        for chunk in encoded:
            tally.codecs[chunk.codec] += chunk.raw_bytes * block.nbytes // total

    def _seconds(self, work: Callable[[], object]) -> float:
        """The median of a few runs."""
        durations = []
        for _ in range(self._repetitions):
            start = self._clock()
            work()
            durations.append(self._clock() - start)
        return median(durations)

    def _add_tables(self, plan: PlanePlan, plane: SampledPlane, tally: Tally) -> None:
        """Tables serve all blocks of a plane: those that were measured bear their share."""
        zstd = cast(ZstdCodec, self._codecs[ZstdCodec.name])
        share = len(plane.blocks) / plane.geometry.num_chunks
        for stream in plan.streams:
            if stream.table is not None:
                stored = min(len(zstd.encode_text(stream.table)), stream.table.size)
                tally.stored_bytes += share * stored


def _only(stream: ByteArray) -> Sequence[ByteArray]:
    return (stream,)


def _as_plane(
    plan: PlanePlan, dtype: str, block: AnyArray, encoded: Sequence[EncodedChunk]
) -> Plane:
    """The block as a plane of its own, for the decoder."""
    names = plan.filter.stream_names(dtype)
    return Plane(
        name="block",
        dtype=dtype,
        shape=block.shape,
        filter=plan.filter.name,
        rows_per_chunk=block.shape[0],
        digest="",
        streams=tuple(
            Stream(name=name, chunks=(chunk.at(0),))
            for name, chunk in zip(names, encoded, strict=True)
        ),
    )


def _check(
    trial: Trial, dtype: str, decode: Callable[[], None], block: AnyArray, out: AnyArray
) -> None:
    """Decodes once. Raises RoundTripError unless that gives the block back."""
    what = f"the codec {trial.name!r} does not give back {block.nbytes} bytes of {dtype}"
    try:
        decode()
    except BundleCorruptError as error:
        raise RoundTripError(f"{what}: {error}") from error
    wrong = np.flatnonzero(out.view(np.uint8) != block.reshape(-1).view(np.uint8))
    if wrong.size:
        raise RoundTripError(
            f"{what}: {wrong.size} differ, the first at {wrong[0]}; please report this"
        )
