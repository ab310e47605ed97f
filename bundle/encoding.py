"""Choosing how to store: filter by plane, codec by chunk, measured rather than guessed.

A choice is made on a sample, so that trying every encoder costs little more than the winner; what
is kept is always compared at its real size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.bundle import limits
from tersor.bundle.codecs import AUTO, Codec, Encoder
from tersor.bundle.digests import checksum
from tersor.bundle.dtypes import AnyArray, ByteArray, Geometry
from tersor.bundle.errors import BundleWriteError
from tersor.bundle.filters import Filter, filters_for
from tersor.bundle.manifest import Chunk

_SAMPLE_SLICES = 4
_SLICE_BYTES = 16 << 10
# Encoders within this factor of the best on the sample are tried on the whole chunk.
_CLOSE = 1.03
# Decoding costs time, so an encoding must save at least this share of the raw bytes.
_MIN_SAVING = 1 / 128
# Blocks of a plane on which its filters are compared.
_FILTER_BLOCKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedChunk:
    """Stored bytes ready to be written."""

    data: bytes
    raw_bytes: int
    codec: str
    checksum: int  # xxh3-64 of data

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
    """Picks filters and codecs. Safe from many threads; deterministic."""

    def __init__(self, codecs: Mapping[str, Codec], codec: str) -> None:
        """`codec` is "auto", or the only codec to use besides raw (where it does not pay).

        Raises:
            BundleWriteError: there is no such codec.
        """
        if codec != AUTO and codec not in codecs:
            raise BundleWriteError(
                f"unknown codec {codec!r}; expected {AUTO} or one of {', '.join(codecs)}"
            )
        names = list(codecs) if codec == AUTO else [codec]
        self._encoders: list[tuple[str, Encoder]] = [
            (name, encoder) for name in names if name != "raw" for encoder in codecs[name].encoders
        ]

    def encode(self, data: ByteArray) -> EncodedChunk:
        """The smallest encoding of one chunk of a stream."""
        limit = data.size - max(1, int(data.size * _MIN_SAVING))
        best: tuple[str, bytes] | None = None
        for name, encoder in self._shortlist(data):
            stored = encoder(data)
            if len(stored) <= limit:
                best, limit = (name, stored), len(stored) - 1
        codec, stored = best or ("raw", data.tobytes())
        return EncodedChunk(
            data=stored, raw_bytes=data.size, codec=codec, checksum=checksum(stored)
        )

    def choose_filter(self, dtype: str, rows: AnyArray, geometry: Geometry) -> Filter:
        """The filter that stores a plane smallest, estimated on a few of its blocks.

        `rows` is the whole plane, one-dimensional.
        """
        candidates = filters_for(dtype)
        if len(candidates) == 1 or geometry.num_chunks == 0:
            return candidates[0]
        count = geometry.num_chunks
        picked = sorted({at * count // _FILTER_BLOCKS for at in range(_FILTER_BLOCKS)})
        sizes = [0.0] * len(candidates)
        for index in picked:
            block = block_of(rows, geometry, index)
            for number, candidate in enumerate(candidates):
                streams = candidate.split(dtype, block)
                sizes[number] += sum(self._estimate(stream) for stream in streams)
        return candidates[sizes.index(min(sizes))]

    def _shortlist(self, data: ByteArray) -> Sequence[tuple[str, Encoder]]:
        sample = _sample(data)
        if sample.size == data.size or len(self._encoders) < 2:
            return self._encoders
        sizes = [len(encoder(sample)) for _, encoder in self._encoders]
        best = min(sizes)
        if best > sample.size * (1 - _MIN_SAVING):
            return ()
        return [
            entry
            for entry, size in zip(self._encoders, sizes, strict=True)
            if size <= best * _CLOSE
        ]

    def _estimate(self, data: ByteArray) -> float:
        """About how many bytes `encode` would store."""
        sample = _sample(data)
        sizes = [len(encoder(sample)) for _, encoder in self._encoders]
        best = min([*sizes, sample.size])
        return best * (data.size / sample.size)


def block_target(plane_bytes: int) -> int:
    """Raw bytes to aim for in one block of a plane of `plane_bytes`."""
    share = plane_bytes // limits.TARGET_BLOCKS_PER_PLANE
    return max(limits.TARGET_BLOCK_RAW_BYTES, min(share, limits.MAX_TARGET_BLOCK_RAW_BYTES))


def block_of(rows: AnyArray, geometry: Geometry, index: int) -> AnyArray:
    """The symbols of one chunk's rows: a view of the one-dimensional plane."""
    first, last = geometry.row_range(index)
    return rows[first * geometry.row_symbols : last * geometry.row_symbols]


def _sample(data: ByteArray) -> ByteArray:
    """The whole of a small chunk; slices spread evenly over a large one."""
    if data.size <= 2 * _SAMPLE_SLICES * _SLICE_BYTES:
        return data
    step = (data.size - _SLICE_BYTES) // (_SAMPLE_SLICES - 1)
    return np.concatenate(
        [data[at * step : at * step + _SLICE_BYTES] for at in range(_SAMPLE_SLICES)]
    )
