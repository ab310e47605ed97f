"""Compares codecs on the planes of a real model: size, speed, and the entropy as a yardstick."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tersor.bundle.codecs import Codec, default_codecs
from tersor.bundle.dtypes import AnyArray, Geometry, rows_per_chunk
from tersor.bundle.encoding import block_target, spread
from tersor.bundle.filters import FILTERS, Filter
from tersor.bundle.location import Location
from tersor.bundle.plane_data import PlaneData, contiguous
from tersor.converters.codec_trials import Laboratory, SampledPlane, Tally, Trial, all_trials
from tersor.converters.order_zero import OrderZero
from tersor.converters.plane_supply import PlaneSupply, SuppliedTensor, open_planes
from tersor.converters.progress import ByteMeter, Progress
from tersor.converters.recipe import Recipe

DEFAULT_MAX_BYTES = 64 << 20
REPETITIONS = 3

_FLOATS = frozenset({"f8_e4m3", "f8_e5m2", "f16", "bf16", "f32", "f64"})
# Of a plane, if it has as many: making a tensor's planes costs more than measuring a block.
_MIN_BLOCKS = 4
_NO_FILTER = FILTERS["none"]
_TICK_SECONDS = 1e-9  # what a clock cannot tell from nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecResult:
    """What a codec makes of a kind of plane."""

    codec: str  # its name; "rans, columns": with classes of columns; "auto": the writer's choice
    stored_bytes: int
    ratio: float  # stored bytes of raw bytes
    bits_per_symbol: float
    encode_mb_per_second: float  # 10^6 raw bytes; filter and choice included, as when writing
    decode_mb_per_second: float  # 10^6 raw bytes; filter included, checksums not
    filters: Mapping[str, float]  # share of raw bytes by filter
    codecs: Mapping[str, float]  # share of raw bytes by codec: what does not shrink is raw


@dataclass(frozen=True, slots=True, kw_only=True)
class KindResult:
    """Planes of one layout, name and dtype, or one stream of their filter."""

    layout: str
    plane: str
    dtype: str
    filter: str | None  # of a stream; None: whole planes
    stream: str | None
    tensors: int  # that were measured
    of_tensors: int  # of the layout (of `dense`: and the dtype)
    measured_bytes: int  # raw
    whole: bool  # everything was measured, not a sample
    symbols: int
    entropy_bits: float  # order 0, of a symbol
    results: tuple[CodecResult, ...]

    @property
    def name(self) -> str:
        """For example "int4 codes u4" or "dense values bf16: exponent (float_split)"."""
        whole = f"{self.layout} {self.plane} {self.dtype}"
        return whole if self.stream is None else f"{whole}: {self.stream} ({self.filter})"

    @property
    def entropy_ratio(self) -> float:
        """The entropy as a ratio of raw bytes."""
        return self.entropy_bits * self.symbols / 8 / self.measured_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecReport:
    """A finished comparison."""

    source: str
    recipe: str
    max_bytes: int  # of a kind
    repetitions: int  # of which speeds are the median
    kinds: tuple[KindResult, ...]


def compare_codecs(
    place: Location,
    *,
    recipe: Recipe | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    codecs: Mapping[str, Codec] | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> CodecReport:
    """Stores and loads blocks of the planes of `place` with every codec, in this thread.

    Each codec gets the filter that suits it, and what it does not shrink is kept raw, as by
    `convert(codec=…)`. Of each kind of plane at most `max_bytes` are measured (one block of rows at
    least), in whole blocks as a writer cuts them, spread over the tensors and their rows; what they
    do not need is not read. One tensor is in memory at a time.

    Args:
        place: a model folder, a `.pt2` file, or a bundle.
        recipe: what makes the planes of a model; lossless if None. A bundle takes none.
        max_bytes: see above; at least 1.
        codecs: by name; those of this build if None.
        progress: told of every tensor.
        clock: seconds.

    Raises:
        ConvertError: the source is not a complete model, or the recipe does not fit.
        RoundTripError: a codec does not give back what it was given.
        BundleError: the bundle cannot be read.
    """
    with open_planes(place, recipe) as supply:
        comparison = _Comparison(codecs or default_codecs(), max_bytes, clock)
        comparison.run(supply, ByteMeter(progress, sum(t.num_bytes for t in supply.tensors)))
        return CodecReport(
            source=str(place),
            recipe=supply.recipe,
            max_bytes=max_bytes,
            repetitions=REPETITIONS,
            kinds=comparison.results(),
        )


@dataclass(frozen=True, slots=True)
class _Kind:
    layout: str
    plane: str
    dtype: str
    filter: str | None = None
    stream: str | None = None


class _Record:
    """What is known of one kind so far."""

    def __init__(self, dtype: str, trials: Sequence[Trial], of_tensors: int) -> None:
        self.entropy = OrderZero(dtype)
        self.tallies = [Tally() for _ in trials]
        self.tensors = 0
        self.of_tensors = of_tensors
        self.symbols = 0
        self.measured_bytes = 0
        self.whole = True
        self.full = False  # no further block has room

    def add(self, blocks: Sequence[AnyArray]) -> None:
        """Counts the measured blocks of one more tensor."""
        self.tensors += 1
        for block in blocks:
            self.entropy.add(block)
            self.symbols += block.size
            self.measured_bytes += block.nbytes


class _Comparison:
    def __init__(
        self, codecs: Mapping[str, Codec], max_bytes: int, clock: Callable[[], float]
    ) -> None:
        self._trials = all_trials(codecs)
        self._max_bytes = max_bytes
        self._laboratory = Laboratory(codecs, repetitions=REPETITIONS, clock=clock)
        self._records: dict[_Kind, _Record] = {}

    def run(self, supply: PlaneSupply, meter: ByteMeter) -> None:
        families: dict[str, list[SuppliedTensor]] = {}
        for tensor in supply.tensors:
            families.setdefault(tensor.family, []).append(tensor)
        for members in families.values():
            self._family(members, meter)

    def results(self) -> tuple[KindResult, ...]:
        """The largest kinds first; after each, the streams of the filter that most of it takes."""
        whole = [kind for kind, record in self._records.items() if kind.stream is None]
        whole.sort(key=lambda kind: -self._records[kind].measured_bytes)
        return tuple(
            self._result(each, self._records[each])
            for kind in whole
            if self._records[kind].symbols
            for each in (kind, *self._streams_of(kind))
        )

    def _streams_of(self, kind: _Kind) -> list[_Kind]:
        auto = self._records[kind].tallies[-1]
        usual, _ = auto.filters.most_common(1)[0]
        return [
            each
            for each in self._records
            if each.filter == usual and replace(each, filter=None, stream=None) == kind
        ]

    def _family(self, members: Sequence[SuppliedTensor], meter: ByteMeter) -> None:
        """Measures tensors until they end, or a kind has its bytes."""
        left = sum(tensor.num_bytes for tensor in members)
        everything = left <= self._max_bytes
        touched: dict[_Kind, _Record] = {}
        for tensor in _spread_out(members):
            if not any(record.full for record in touched.values()):
                meter.begin(tensor.name)
                share = 1.0 if everything else tensor.num_bytes / left
                touched.update(self._tensor(tensor, share, len(members)))
            else:
                for record in touched.values():
                    record.whole = False
            left -= tensor.num_bytes
            meter.finish(tensor.name, tensor.num_bytes)

    def _tensor(
        self, tensor: SuppliedTensor, share: float, of_tensors: int
    ) -> dict[_Kind, _Record]:
        """Measures some blocks of a tensor's planes; the records of their kinds."""
        supplied = tensor.load()
        touched: dict[_Kind, _Record] = {}
        for name, data in supplied.planes.items():
            kind = _Kind(supplied.layout, name, data.dtype)
            record = self._record(kind, data.dtype, of_tensors)
            touched[kind] = record
            plane = self._sample(name, data, record, share)
            if plane is not None:
                chosen = self._whole(plane, record)
                if chosen is not _NO_FILTER and data.dtype in _FLOATS:
                    touched.update(self._streams(kind, plane, chosen, of_tensors))
        return touched

    def _record(self, kind: _Kind, dtype: str, of_tensors: int) -> _Record:
        if kind not in self._records:
            self._records[kind] = _Record(dtype, self._trials, of_tensors)
        return self._records[kind]

    def _sample(
        self, name: str, data: PlaneData, record: _Record, share: float
    ) -> SampledPlane | None:
        """The blocks to measure, `share` of what is left for their kind; None if there are none."""
        array = contiguous(name, data)
        rows = rows_per_chunk(array.shape, data.dtype, block_target(array.nbytes))
        geometry = Geometry.of(array.shape, data.dtype, rows)
        if geometry.num_chunks == 0:
            return None
        left = max(0, self._max_bytes - record.measured_bytes)  # the first block may have more
        count = geometry.num_chunks
        if array.nbytes > left * share:
            room = left // geometry.block_bytes or int(record.measured_bytes == 0)
            wanted = max(_MIN_BLOCKS, int(left * share / geometry.block_bytes))
            count = min(count, room, wanted)
            record.whole &= count == geometry.num_chunks
        # A tensor is not made only to find out that a block like these has no room.
        record.full = share < 1 and left - count * geometry.block_bytes < geometry.block_bytes
        if count == 0:
            return None
        return SampledPlane(
            dtype=data.dtype,
            flat=array.reshape(-1),
            geometry=geometry,
            blocks=spread(geometry.num_chunks, count),
        )

    def _whole(self, plane: SampledPlane, record: _Record) -> Filter:
        """Runs all trials; the filter of the last, which is the writer's choice."""
        record.add([plane.block(index) for index in plane.blocks])
        for trial, tally in zip(self._trials, record.tallies, strict=True):
            chosen = self._laboratory.whole(trial, plane, tally)
        return chosen

    def _streams(
        self, kind: _Kind, plane: SampledPlane, chosen: Filter, of_tensors: int
    ) -> dict[_Kind, _Record]:
        kinds = [
            _Kind(kind.layout, kind.plane, kind.dtype, chosen.name, stream)
            for stream in chosen.stream_names(plane.dtype)
        ]
        records = [self._record(each, "u8", of_tensors) for each in kinds]
        split = [chosen.split(plane.dtype, plane.block(index)) for index in plane.blocks]
        for record, streams in zip(records, zip(*split, strict=True), strict=True):
            record.add(streams)
        for number, trial in enumerate(self._trials):
            tallies = [record.tallies[number] for record in records]
            self._laboratory.streams(trial, plane, chosen, tallies)
        return dict(zip(kinds, records, strict=True))

    def _result(self, kind: _Kind, record: _Record) -> KindResult:
        return KindResult(
            layout=kind.layout,
            plane=kind.plane,
            dtype=kind.dtype,
            filter=kind.filter,
            stream=kind.stream,
            tensors=record.tensors,
            of_tensors=record.of_tensors,
            measured_bytes=record.measured_bytes,
            whole=self._records[replace(kind, filter=None, stream=None)].whole,
            symbols=record.symbols,
            entropy_bits=record.entropy.bits,
            results=tuple(
                _codec_result(trial.name, tally, record.symbols)
                for trial, tally in zip(self._trials, record.tallies, strict=True)
            ),
        )


def _codec_result(name: str, tally: Tally, symbols: int) -> CodecResult:
    raw = tally.raw_bytes
    return CodecResult(
        codec=name,
        stored_bytes=round(tally.stored_bytes),
        ratio=tally.stored_bytes / raw,
        bits_per_symbol=8 * tally.stored_bytes / symbols,
        encode_mb_per_second=raw / 1e6 / max(tally.encode_seconds, _TICK_SECONDS),
        decode_mb_per_second=raw / 1e6 / max(tally.decode_seconds, _TICK_SECONDS),
        filters={name: count / raw for name, count in tally.filters.most_common()},
        codecs={name: count / raw for name, count in tally.codecs.most_common()},
    )


def _spread_out(members: Sequence[SuppliedTensor]) -> list[SuppliedTensor]:
    """All, in an order of which any beginning is spread evenly: by the index's bits, reversed."""
    width = max(1, (len(members) - 1).bit_length())
    order = sorted(range(len(members)), key=lambda index: f"{index:0{width}b}"[::-1])
    return [members[index] for index in order]
