"""Planes that are decoded where they become resident: compressed bytes cross the link.

A plane is sent compressed if most of what is coded in it is of the codec `rans`, and it is large
enough to be worth a launch. Its chunks of other codecs are decoded on the host, as are all chunks
of all other planes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tersor.bundle.decoding import Cancelled, check_cancelled
from tersor.bundle.dtypes import SYMBOL_LIMITS, ByteArray, Geometry
from tersor.bundle.encoded_plane import EncodedPlane, StoredChunk
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.manifest import DTYPES, Plane
from tersor.bundle.phases import PhaseTimes, measured
from tersor.kernels.entropy import EncodedChunk, decode_parts
from tersor.kernels.filters import join_bits, join_float8, join_floats, join_nibbles
from tersor.kernels.staging import Staging
from tersor.models.entropy import encoded_chunks

if TYPE_CHECKING:
    from tersor.kernels.entropy.parts import Part

# A core decodes this in 1 ms, which parsing, packing and launching take as well.
MIN_PLANE_BYTES = 1 << 19
# Raw bytes that are joined at once: what streams and joined symbols take beside the result.
SLICE_BYTES = 128 << 20
# Symbols a byte of a stream: the blocks of a plane must meet where a byte ends.
_SYMBOLS_PER_BYTE: Mapping[str, int] = {"nibbles": 2, "f8_split": 2, "bit_planes": 8}
_MAX_BASES = 1 << 24  # rows that `row_exponent` is joined for: a launch has a program for each
_MANTISSA_BITS = {"f8_e4m3": 3, "f8_e5m2": 2}
_BITS = {"bool": 1, "u4": 4, "u8": 8, "i8": 8}

Joined = tuple[Tensor, Tensor | None]  # symbols, and whether streams hold what no plane has


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatParts:
    """A bf16 plane in two, as its filter leaves it: uint8 [plane.shape] each."""

    exponents: Tensor
    mantissas: Tensor  # mmmmmmms


class DeviceDecoder:
    """Decodes the planes of one load on its device. For one thread."""

    def __init__(self, device: torch.device, *, min_plane_bytes: int = MIN_PLANE_BYTES) -> None:
        self._device = device
        self._min_plane_bytes = min_plane_bytes
        self._staging = Staging(device)

    def takes(self, plane: Plane) -> bool:
        """Whether `decode` can do it on the device, as far as the manifest tells."""
        if plane.raw_bytes < self._min_plane_bytes:
            return False
        coded = Counter[str]()
        for stream in plane.streams:
            for chunk in stream.chunks:
                coded[chunk.codec] += chunk.raw_bytes
        if coded["rans"] == 0 or 2 * coded["rans"] < coded.total() - coded["raw"]:
            return False
        geometry = Geometry.of_plane(plane)
        if plane.filter == "row_exponent":
            return geometry.rows <= _MAX_BASES
        block_symbols = geometry.rows_per_chunk * geometry.row_symbols
        meets = block_symbols % _SYMBOLS_PER_BYTE.get(plane.filter, 1) == 0
        return geometry.num_chunks == 1 or meets

    def decode(
        self,
        encoded: EncodedPlane,
        dtype: torch.dtype,
        *,
        times: PhaseTimes | None = None,
        cancelled: Cancelled | None = None,
    ) -> Tensor:
        """The plane on the device: `dtype`, which has the width of its symbols, [plane.shape].

        Args:
            encoded: all rows of a plane that `takes` is true for.
            dtype: as what its symbols are seen.
            times: gets "decode" and "transfer".
            cancelled: polled before the plane and before each launch.

        Raises:
            BundleCorruptError: the bytes do not decode to what the manifest declares.
            BundleCancelledError: `cancelled()` became true.
        """
        plane = encoded.plane
        streams = encoded.chunks()
        slices = _slices(plane)
        whole: Tensor | None = None  # where there are several slices
        for rows, blocks in slices:
            chunks = [chunk for stream in streams for chunk in stream[blocks]]
            join = partial(_join, rows=rows.stop - rows.start)
            symbols = self._streams(encoded, chunks, join, times, cancelled)
            if symbols is None:
                array = encoded.decode(times=times, cancelled=cancelled)
                return torch.from_numpy(array).view(dtype).to(self._device)
            symbols = symbols.view(dtype)
            if len(slices) == 1:
                return symbols.view(plane.shape)
            if whole is None:
                whole = torch.empty(plane.shape, dtype=dtype, device=self._device)
            whole[rows] = symbols.view(-1, *plane.shape[1:])
        assert whole is not None, "a plane of `rans` chunks has blocks"
        return whole

    def decode_apart(
        self,
        encoded: EncodedPlane,
        *,
        times: PhaseTimes | None = None,
        cancelled: Cancelled | None = None,
    ) -> Tensor | FloatParts:
        """A bf16 plane for a layout that keeps its bytes apart, where its filter did.

        Other planes whole. Arguments and errors are those of `decode`.
        """
        plane = encoded.plane
        if plane.dtype == "bf16" and plane.filter in {"float_split", "row_exponent"}:
            chunks = [chunk for stream in encoded.chunks() for chunk in stream]
            streams = self._streams(encoded, chunks, _apart, times, cancelled)
            if streams is not None:
                exponents, mantissas = streams.view(2, *plane.shape)
                return FloatParts(exponents=exponents, mantissas=mantissas)
        return self.decode(encoded, torch.bfloat16, times=times, cancelled=cancelled)

    def _streams(
        self,
        encoded: EncodedPlane,
        chunks: Sequence[StoredChunk],
        join: Callable[[Plane, Tensor], Joined],
        times: PhaseTimes | None,
        cancelled: Cancelled | None,
    ) -> Tensor | None:
        """What `join` makes of the streams of some blocks, whose chunks are given in order.

        None if the chunks have symbols of different widths, which no writer makes.
        """

        def measure(phase: str) -> AbstractContextManager[None]:
            check_cancelled(cancelled)
            return measured(times, phase)

        with measure("decode"):
            try:
                parts = _parts(encoded, chunks, cancelled)
            except BundleCorruptError as error:
                raise self._named(encoded, error) from error
        if not _go_together(parts):
            return None
        streams, bad = decode_parts(parts, self._staging, measure)
        with measure("decode"):
            joined, unfit = join(encoded.plane, streams)
            if bool(bad if unfit is None else bad | unfit):
                raise self._named(encoded, "its streams do not decode")
        return joined

    def _named(
        self, encoded: EncodedPlane, problem: str | BundleCorruptError
    ) -> BundleCorruptError:
        """What is damaged, in the words of the host: it decodes the plane to find the place."""
        try:
            encoded.decode()
        except BundleCorruptError as error:
            return error
        return BundleCorruptError(
            f"plane {encoded.plane.name!r} decodes on the host, but not on {self._device}: "
            f"{problem}; the device or its driver is faulty"
        )


def _slices(plane: Plane) -> list[tuple[slice, slice]]:
    """Rows and blocks that are joined at once; all where the streams are the plane itself."""
    geometry = Geometry.of_plane(plane)
    step = geometry.num_chunks
    if plane.filter != "none":
        step = max(1, SLICE_BYTES // geometry.block_bytes)
    starts = range(0, geometry.num_chunks, step)
    blocks = [slice(first, min(first + step, geometry.num_chunks)) for first in starts]
    return [
        (slice(geometry.row_range(each.start)[0], geometry.row_range(each.stop - 1)[1]), each)
        for each in blocks
    ]


def _parts(
    encoded: EncodedPlane, chunks: Sequence[StoredChunk], cancelled: Cancelled | None
) -> list[Part]:
    """What is sent of each chunk. Raises BundleCorruptError."""
    coded = iter(encoded_chunks([chunk for chunk in chunks if chunk.codec == "rans"]))
    others = [chunk for chunk in chunks if chunk.codec not in {"rans", "raw"}]
    decoded = iter(encoded.decode_chunks(others, cancelled=cancelled))
    return [
        next(coded)
        if chunk.codec == "rans"
        else _bytes(chunk.stored if chunk.codec == "raw" else next(decoded))
        for chunk in chunks
    ]


def _go_together(parts: list[Part]) -> bool:
    """Whether one tensor holds all chunks' symbols, which no writer has made otherwise."""
    widths = {part.tables.values.itemsize for part in parts if isinstance(part, EncodedChunk)}
    even = all(part.numel() % 2 == 0 for part in parts if isinstance(part, Tensor))
    return widths == {1} or (widths == {2} and even)


def _bytes(data: ByteArray) -> Tensor:
    # Copied only where they may not be written to, which torch does not take.
    return torch.from_numpy(np.require(data, requirements=["W"]))


def _join(plane: Plane, streams: Tensor, rows: int) -> Joined:
    """The symbols of whole blocks from the bytes of all streams, in the order of the manifest."""
    symbols = rows * Geometry.of_plane(plane).row_symbols
    width = DTYPES[plane.dtype]
    joins: Mapping[str, Callable[[], Joined]] = {
        "none": partial(_join_none, plane.dtype, streams),
        "float_split": lambda: (join_floats(streams, width), None),
        "row_exponent": lambda: (join_floats(streams, width, rows=rows), None),
        "nibbles": lambda: join_nibbles(streams, symbols),
        "f8_split": lambda: join_float8(streams, symbols, _MANTISSA_BITS[plane.dtype]),
        "bit_planes": lambda: join_bits(streams, symbols, _BITS[plane.dtype]),
    }
    return joins[plane.filter]()


def _apart(plane: Plane, streams: Tensor) -> Joined:
    """Exponents and mantissas, uint8 [2 * symbols], of a whole plane."""
    if plane.filter == "float_split":
        return streams, None
    rows = plane.shape[0]
    split = streams[rows:]
    split.view(2, rows, -1)[0] += streams[:rows, None]  # modulo 256
    return split, None


def _join_none(dtype: str, streams: Tensor) -> Joined:
    limit = SYMBOL_LIMITS.get(dtype)
    return streams, None if limit is None else (streams > limit).any()


__all__ = ["MIN_PLANE_BYTES", "DeviceDecoder", "FloatParts"]
