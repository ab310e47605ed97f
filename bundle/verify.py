"""Checking a whole bundle: every stored byte, every decoded plane, every digest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
from blake3 import blake3

from tersor.bundle.block_runs import ChunkReads
from tersor.bundle.codecs import Codec, ZstdCodec, default_codecs
from tersor.bundle.container import HEADER_BYTES
from tersor.bundle.damage import Damage
from tersor.bundle.decoding import (
    BlockDecoder,
    describe_chunk,
    describe_table,
    memory_for,
    verify_chunk,
)
from tersor.bundle.digests import content_digest, digest_bytes
from tersor.bundle.dtypes import AnyArray, ByteArray, Geometry, numpy_dtype
from tersor.bundle.errors import BundleCorruptError, BundleError
from tersor.bundle.manifest import Asset, Chunk, Manifest, Plane
from tersor.bundle.parity_survey import ParityReport
from tersor.bundle.parity_verify import check_parity_section
from tersor.bundle.places import Owners
from tersor.bundle.reader import read_manifest
from tersor.bundle.sources import Access, BundlePlace, ByteSource, open_sequential
from tersor.bundle.validate import PlaneKey, plane_key, stored_planes

Progress = Callable[[int, int], None]  # bytes checked, bytes in all


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was checked, and what is damaged."""

    file_bytes: int
    planes: int  # planes at rest: a shared plane counts once
    chunks: int
    assets: int
    damages: tuple[Damage, ...]
    parity: ParityReport | None = None  # None: the bundle has none

    @property
    def ok(self) -> bool:
        """Whether every byte is what it was when the bundle was written."""
        return not self.damages


def verify(
    place: BundlePlace, *, access: Access = "read", progress: Progress | None = None
) -> VerifyReport:
    """Reads and decodes a whole bundle, one block in memory at a time.

    Args:
        place: a path, an http or https URL (read in a few large requests), or a source.
        access: how a file is read (see `open_source`).
        progress: called with the bytes checked so far and the bytes in all.

    Returns:
        A report that lists each damaged chunk, plane and asset.

    Raises:
        BundleError: the file cannot be opened as a bundle (its header, manifest or footer is
            damaged or missing), so there is nothing to list the damage by; or it cannot be read,
            or a block of it does not fit into memory.
    """
    source = open_sequential(place, access=access)
    try:
        codecs = default_codecs()
        manifest = read_manifest(source, cast(ZstdCodec, codecs["zstd"]))
        with source.using():
            report = _Verification(source, manifest, codecs, progress).run()
            return _with_parity(report, source, manifest)
    except BundleError as error:
        raise type(error)(f"{source.name}: {error}") from error
    finally:
        source.close()


def _with_parity(report: VerifyReport, source: ByteSource, manifest: Manifest) -> VerifyReport:
    owners = Owners(manifest)
    damages = tuple(
        replace(damage, groups=owners.groups(damage.tensors)) for damage in report.damages
    )
    found, parity = check_parity_section(source, manifest, intact=report.ok)
    return replace(report, damages=(*damages, *found), parity=parity)


class _Verification:
    """One pass over a file from its header to its manifest."""

    def __init__(
        self,
        source: ByteSource,
        manifest: Manifest,
        codecs: Mapping[str, Codec],
        progress: Progress | None,
    ) -> None:
        self._source = source
        self._manifest = manifest
        self._codecs = codecs
        self._progress = progress
        self._damages: list[Damage] = []
        self._chunks = 0
        self._checked = HEADER_BYTES  # everything before this offset was looked at

    def run(self) -> VerifyReport:
        """Checks everything; the file must be kept open meanwhile."""
        users: dict[PlaneKey, list[str]] = {}
        for tensor in self._manifest.tensors:
            for plane in tensor.planes:
                users.setdefault(plane_key(plane), []).append(tensor.name)
        for plane in stored_planes(self._manifest):
            with memory_for(
                f"a block of plane {plane.name!r}", Geometry.of_plane(plane).block_bytes
            ):
                self._check_plane(plane, tuple(dict.fromkeys(users[plane_key(plane)])))
        assets = [self._check_asset(asset) for asset in self._manifest.assets]
        if self._manifest.parity is not None:
            self._check_padding(self._manifest.parity.offset, None)
        if not self._damages:
            self._check_whole(assets)
        return VerifyReport(
            file_bytes=self._source.size,
            planes=len(users),
            chunks=self._chunks,
            assets=len(assets),
            damages=tuple(self._damages),
        )

    def _check_plane(self, plane: Plane, tensors: tuple[str, ...]) -> None:
        hasher = blake3()
        before = len(self._damages)
        tables = self._check_tables(plane, tensors)
        decoder = BlockDecoder(plane, self._codecs, tables or ())
        for block in range(decoder.geometry.num_chunks):
            symbols = self._check_block(decoder, block, tensors, decodable=tables is not None)
            if symbols is not None:
                hasher.update(symbols.view(np.uint8).data)
        digest = hasher.hexdigest()
        if len(self._damages) == before and digest != plane.digest:
            message = (
                f"plane {plane.name!r} decodes to other values than were written: its BLAKE3 is "
                f"{digest}, expected {plane.digest}"
            )
            self._damages.append(
                Damage(kind="plane", message=message, tensors=tensors, plane=plane.name)
            )

    def _check_tables(
        self, plane: Plane, tensors: tuple[str, ...]
    ) -> tuple[ByteArray | None, ...] | None:
        """The tables of the plane's streams; None if one is damaged."""
        tables: list[ByteArray | None] = []
        before = len(self._damages)
        for stream in plane.streams:
            chunk = stream.table
            if chunk is None:
                tables.append(None)
                continue
            self._chunks += 1
            try:
                stored = self._read_chunks([chunk], plane)
                verify_chunk(stored, chunk, partial(describe_table, plane, stream))
                tables.append(self._codecs[chunk.codec].decode(stored, chunk.raw_bytes))
            except BundleCorruptError as error:
                self._damages.append(
                    Damage(
                        kind="table",
                        message=str(error),
                        tensors=tensors,
                        plane=plane.name,
                        stream=stream.name,
                        offset=chunk.offset,
                        stored_bytes=chunk.stored_bytes,
                    )
                )
        return None if len(self._damages) > before else tuple(tables)

    def _check_block(
        self, decoder: BlockDecoder, block: int, tensors: tuple[str, ...], *, decodable: bool
    ) -> AnyArray | None:
        """Checks the chunks of one block and decodes it; None if it is damaged."""
        plane = decoder.plane
        chunks = decoder.chunks(block)
        self._chunks += len(chunks)
        size = decoder.stored_bytes(block)
        stored = self._read_chunks(chunks, plane)
        before = len(self._damages)
        at = 0
        for stream, chunk in zip(plane.streams, chunks, strict=True):
            data = stored[at : at + chunk.stored_bytes]
            at += chunk.stored_bytes
            try:
                verify_chunk(data, chunk, partial(describe_chunk, plane, stream, block))
            except BundleCorruptError as error:
                damage = Damage(
                    kind="chunk",
                    message=str(error),
                    tensors=tensors,
                    plane=plane.name,
                    stream=stream.name,
                    chunk=block,
                    offset=chunk.offset,
                    stored_bytes=chunk.stored_bytes,
                )
                self._damages.append(damage)
        if len(self._damages) > before or not decodable:
            return None
        symbols = np.empty(decoder.geometry.symbols(block), numpy_dtype(plane.dtype))
        try:
            decoder.decode(block, stored, symbols)
        except BundleCorruptError as error:
            damage = Damage(
                kind="chunk",
                message=str(error),
                tensors=tensors,
                plane=plane.name,
                chunk=block,
                offset=chunks[0].offset,
                stored_bytes=size,
            )
            self._damages.append(damage)
            return None
        return symbols

    def _check_padding(self, end: int, plane: Plane | None) -> None:
        """The bytes that align a plane, or the parity, are zero: nothing hides in them."""
        start = self._checked
        if start < end and self._read(start, end - start).any():
            self._damages.append(
                Damage(
                    kind="padding",
                    message=f"the {end - start} bytes that align "
                    f"{f'plane {plane.name!r}' if plane else 'the parity'} are not all zero; no "
                    "tensor is affected",
                    plane=plane.name if plane else None,
                    offset=start,
                    stored_bytes=end - start,
                )
            )

    def _check_asset(self, asset: Asset) -> str:
        """Checks an asset and returns its digest, or "" if it is damaged."""
        chunk = asset.chunk
        self._chunks += 1
        try:
            with memory_for(f"asset {asset.name!r}", chunk.raw_bytes):
                stored = self._read(chunk.offset, chunk.stored_bytes)
                verify_chunk(stored, chunk, lambda: f"asset {asset.name!r}")
                return digest_bytes(self._codecs[chunk.codec].decode(stored, chunk.raw_bytes).data)
        except BundleCorruptError as error:
            self._damages.append(
                Damage(
                    kind="asset",
                    message=str(error),
                    asset=asset.name,
                    offset=chunk.offset,
                    stored_bytes=chunk.stored_bytes,
                )
            )
            return ""

    def _check_whole(self, assets: list[str]) -> None:
        planes = (plane.digest for tensor in self._manifest.tensors for plane in tensor.planes)
        whole = content_digest([*planes, *assets])
        if whole != self._manifest.digest:
            self._damages.append(
                Damage(
                    kind="digest",
                    message=f"the content digest is {whole}, expected {self._manifest.digest}",
                )
            )

    def _read_chunks(self, chunks: Sequence[Chunk], plane: Plane) -> ByteArray:
        """The stored bytes of chunks, after what aligns the first that was not read before."""
        for chunk in chunks:
            if chunk.offset > self._checked:
                self._check_padding(chunk.offset, plane)
            self._checked = max(self._checked, chunk.offset + chunk.stored_bytes)
        data = ChunkReads(self._source, chunks).load()
        if self._progress is not None:
            self._progress(self._checked, self._source.size)
        return data

    def _read(self, offset: int, size: int) -> ByteArray:
        data = self._source.load(offset, size)
        self._checked = offset + size
        if self._progress is not None:
            self._progress(self._checked, self._source.size)
        return data
