"""Bundles whose sizes, digests and checksums are right, whatever stands in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import zstandard

from tersor.bundle import limits
from tersor.bundle.container import Footer, pack_header
from tersor.bundle.digests import checksum, digest_bytes

Json = dict[str, Any]


class Forge:
    """Writes forged bundles. Level 1 of zstd: a case compresses its manifest and is opened once."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=1, write_content_size=True)

    def bundle(self, body: bytes | bytearray, text: bytes, raw_bytes: int | None = None) -> bytes:
        """A file of everything before the manifest, the manifest's text, and a footer.

        `raw_bytes` is what the footer declares; None: what the text has.
        """
        return self.with_stored(
            body, self._zstd.compress(text), len(text) if raw_bytes is None else raw_bytes
        )

    def with_stored(self, body: bytes | bytearray, stored: bytes, raw_bytes: int) -> bytes:
        """As `bundle`, with the stored bytes of a manifest."""
        return bytes(body) + stored + self.footer(len(body), stored, raw_bytes).pack()

    def footer(self, offset: int, stored: bytes, raw_bytes: int) -> Footer:
        """The footer of a file whose stored manifest begins at `offset`."""
        return Footer(
            manifest_offset=offset,
            manifest_stored_bytes=len(stored),
            manifest_raw_bytes=raw_bytes,
            file_bytes=offset + len(stored) + 80,
            manifest_digest=bytes.fromhex(digest_bytes(stored)),
        )

    def lay_out(self, value: Json, stored: Mapping[int, bytes]) -> bytearray:
        """Everything before the manifest, with each chunk in its place.

        Args:
            value: a manifest without parity; offsets, sizes and checksums of its chunks are set.
            stored: the stored bytes of each chunk by the offset that it has in `value`.
        """
        body = bytearray(pack_header())
        placed: dict[int, int] = {}
        for plane in value["planes"]:
            first = True
            for chunk in _plane_chunks(plane):
                old = chunk["offset"]
                if first and old not in placed:
                    # A plane that was not aligned need not be.
                    if old % limits.PLANE_ALIGNMENT == 0:
                        body += bytes(-len(body) % limits.PLANE_ALIGNMENT)
                    first = False
                _place(body, chunk, placed, stored[old])
        for asset in value["assets"]:
            _place(body, asset["chunk"], placed, stored[asset["chunk"]["offset"]])
        return body


def chunks_of(value: Json) -> Iterator[Json]:
    """Every chunk of a manifest, shared ones each time, in the order of the file."""
    for plane in value["planes"]:
        yield from _plane_chunks(plane)
    for asset in value["assets"]:
        yield asset["chunk"]


def _plane_chunks(plane: Json) -> Iterator[Json]:
    streams = plane["streams"]
    for stream in streams:
        if "table" in stream:
            yield stream["table"]
    for index in range(max((len(stream["chunks"]) for stream in streams), default=0)):
        for stream in streams:
            if index < len(stream["chunks"]):
                yield stream["chunks"][index]


def _place(body: bytearray, chunk: Json, placed: dict[int, int], data: bytes) -> None:
    old = chunk["offset"]
    if old not in placed:
        placed[old] = len(body)
        body += data
    chunk["offset"] = placed[old]
    chunk["stored_bytes"] = len(data)
    chunk["checksum"] = f"{checksum(data):016x}"
