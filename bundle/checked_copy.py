"""Reading the stored bytes of a bundle in order, each checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import xxhash

from tersor.bundle.container import HEADER_BYTES
from tersor.bundle.damage import Damage
from tersor.bundle.decoding import Readable
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.manifest import Manifest
from tersor.bundle.places import Place, places

_PIECE_BYTES = 1 << 20


def checked_bytes(source: Readable, manifest: Manifest) -> Iterator[ByteArray]:
    """All bytes from the header to the end of the assets, in pieces of at most 1 MiB.

    Neither planes nor assets are decoded. A piece may come before its checksum is found wrong; each
    is valid until the next one is asked for.

    Args:
        source: the file.
        manifest: of the file.

    Raises:
        BundleCorruptError: a chunk, or zeros that align something, are not what was written.
    """

    def refuse(damage: Damage) -> None:
        raise BundleCorruptError(damage.described())

    return _checked(source, manifest, refuse)


def damages(source: Readable, manifest: Manifest) -> list[Damage]:
    """Everything between the header and the end of the assets that is not what was written."""
    found: list[Damage] = []
    for _ in _checked(source, manifest, found.append):
        pass
    return found


def check_place(source: Readable, place: Place) -> Damage | None:
    """What is wrong with a chunk, if anything."""
    found: list[Damage] = []
    buffer = np.empty(min(_PIECE_BYTES, place.chunk.stored_bytes), np.uint8)
    for _ in _checked_chunk(source, place, buffer, found.append):
        pass
    return found[0] if found else None


def _checked(
    source: Readable, manifest: Manifest, report: Callable[[Damage], None]
) -> Iterator[ByteArray]:
    buffer = np.empty(_PIECE_BYTES, np.uint8)
    at = HEADER_BYTES
    for place in places(manifest):
        yield from _checked_padding(source, at, place.chunk.offset, buffer, report)
        yield from _checked_chunk(source, place, buffer, report)
        at = place.end
    if manifest.parity is not None:
        yield from _checked_padding(source, at, manifest.parity.offset, buffer, report)


def _checked_chunk(
    source: Readable, place: Place, buffer: ByteArray, report: Callable[[Damage], None]
) -> Iterator[ByteArray]:
    hasher = xxhash.xxh3_64()
    chunk = place.chunk
    for at in range(0, chunk.stored_bytes, len(buffer)):
        piece = buffer[: chunk.stored_bytes - at]
        source.read_into(chunk.offset + at, piece)
        hasher.update(piece.data)
        yield piece
    if hasher.intdigest() != chunk.checksum:
        report(
            Damage(
                kind=place.kind,
                message=f"{place.name} is damaged: {chunk.stored_bytes} bytes at offset "
                f"{chunk.offset} have xxh3 {hasher.intdigest():016x}, expected "
                f"{chunk.checksum:016x}",
                tensors=place.tensors,
                groups=place.groups,
                plane=place.plane,
                stream=place.stream,
                chunk=place.index,
                asset=place.asset,
                offset=chunk.offset,
                stored_bytes=chunk.stored_bytes,
            )
        )


def _checked_padding(
    source: Readable, start: int, end: int, buffer: ByteArray, report: Callable[[Damage], None]
) -> Iterator[ByteArray]:
    padding = buffer[: end - start]  # shorter than a page: a manifest with larger gaps is refused
    source.read_into(start, padding)
    if padding.any():
        message = f"the {end - start} bytes at offset {start} that align what follows are not zero"
        report(Damage(kind="padding", message=message, offset=start, stored_bytes=end - start))
    yield padding
