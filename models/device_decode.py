"""Planes that are decoded where they become resident: compressed bytes cross the link.

A plane is sent compressed if most of what is coded in it is of the codec `rans`, and it is large
enough to be worth a launch. Its chunks of other codecs are decoded on the host, as are all chunks
of all other planes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tersor.bundle.decoding import Cancelled, check_cancelled
from tersor.bundle.dtypes import SYMBOL_LIMITS, ByteArray, Geometry
from tersor.bundle.encoded_plane import EncodedPlane
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
# Symbols a byte of a stream: the blocks of a plane must meet where a byte ends.
_SYMBOLS_PER_BYTE: Mapping[str, int] = {"nibbles": 2, "f8_split": 2, "bit_planes": 8}
_MAX_BASES = 1 << 24  # rows that `row_exponent` is joined for; longer planes have tiny rows
_MANTISSA_BITS = {"f8_e4m3": 3, "f8_e5m2": 2}
_BITS = {"bool": 1, "u4": 4, "u8": 8, "i8": 8}

Joined = tuple[Tensor, Tensor | None]  # symbols, and whether streams hold what no plane has


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
        with measured(times, "decode"):
            check_cancelled(cancelled)
            try:
                parts = _parts(encoded, cancelled)
            except BundleCorruptError as error:
                raise self._named(encoded, error) from error
        if not _go_together(parts):
            return torch.from_numpy(encoded.decode(times=times)).view(dtype).to(self._device)

        def measure(phase: str) -> AbstractContextManager[None]:
            check_cancelled(cancelled)
            return measured(times, phase)

        streams, bad = decode_parts(parts, self._staging, measure)
        with measured(times, "decode"):
            symbols, unfit = _join(encoded.plane, streams)
            if bool(bad if unfit is None else bad | unfit):
                raise self._named(encoded, "its streams do not decode")
        return symbols.view(dtype).view(encoded.plane.shape)

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


def _parts(encoded: EncodedPlane, cancelled: Cancelled | None) -> list[Part]:
    """What is sent, for all chunks of all streams in order. Raises BundleCorruptError."""
    chunks = [chunk for stream in encoded.chunks() for chunk in stream]
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


def _join(plane: Plane, streams: Tensor) -> Joined:
    """The symbols of a plane from the bytes of all its streams, in the order of the manifest."""
    geometry = Geometry.of_plane(plane)
    symbols = geometry.rows * geometry.row_symbols
    width = DTYPES[plane.dtype]
    joins: Mapping[str, Callable[[], Joined]] = {
        "none": partial(_join_none, plane.dtype, streams),
        "float_split": lambda: (join_floats(streams, width), None),
        "row_exponent": lambda: (join_floats(streams, width, rows=geometry.rows), None),
        "nibbles": lambda: join_nibbles(streams, symbols),
        "f8_split": lambda: join_float8(streams, symbols, _MANTISSA_BITS[plane.dtype]),
        "bit_planes": lambda: join_bits(streams, symbols, _BITS[plane.dtype]),
    }
    return joins[plane.filter]()


def _join_none(dtype: str, streams: Tensor) -> Joined:
    limit = SYMBOL_LIMITS.get(dtype)
    return streams, None if limit is None else (streams > limit).any()


__all__ = ["MIN_PLANE_BYTES", "DeviceDecoder"]
