"""Reading bundles: validated when opened, checksums verified on every load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import numpy as np

from tersor.bundle.bundle_file import BundleFile
from tersor.bundle.codecs import Codec, ZstdCodec, default_codecs
from tersor.bundle.container import (
    FOOTER_BYTES,
    HEADER_BYTES,
    Footer,
    check_header,
    unpack_manifest,
)
from tersor.bundle.decoding import (
    BlockDecoder,
    Cancelled,
    Workers,
    check_cancelled,
    default_threads,
    describe_chunk,
    verify_chunk,
)
from tersor.bundle.dtypes import AnyArray, ByteArray, Geometry, numpy_dtype
from tersor.bundle.errors import (
    BundleError,
    BundleNotFoundError,
    BundleTruncatedError,
)
from tersor.bundle.manifest import Asset, Chunk, Manifest, Plane
from tersor.bundle.manifest_json import manifest_from_json
from tersor.bundle.phases import PhaseTimes, measured

# One read of this size keeps a disk busy, and a cancelled load stops after it. Checksums go in the
# same steps: they run at memory speed, so a smaller task would cost more than its work.
_STEP_BYTES = 4 << 20

_Described = tuple[Chunk, Callable[[], str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderContext:
    """What decoding needs of a reader: its codecs and its threads."""

    codecs: Mapping[str, Codec]
    workers: Workers


class EncodedPlane:
    """The stored bytes of a plane (or of some of its chunks) in host memory, already verified.

    Independent of the reader's file: it may be decoded, any number of times and from any thread,
    after the reader was closed (then without its threads).
    """

    __slots__ = ("_chunks", "_context", "_rows", "_stored", "plane")

    def __init__(
        self,
        plane: Plane,
        stored: ByteArray,
        chunks: range,
        rows: tuple[int, int],
        context: ReaderContext,
    ) -> None:
        self.plane = plane
        self._stored = stored
        self._chunks = chunks
        self._rows = rows
        self._context = context

    @property
    def stored_bytes(self) -> int:
        """Host memory that the stored bytes take."""
        return self._stored.size

    def decode(
        self, *, times: PhaseTimes | None = None, cancelled: Cancelled | None = None
    ) -> AnyArray:
        """The plane, or its fetched rows, as a new array that the caller owns.

        Returns:
            dtype `numpy_dtype(plane.dtype)`, shape `plane.shape` (first dimension: fetched rows).

        Raises:
            BundleCorruptError: the bytes do not decode to what the manifest declares.
            BundleCancelledError: `cancelled()` became true.
        """
        return self._decode(times, cancelled, give_away=False)

    def _decode(
        self, times: PhaseTimes | None, cancelled: Cancelled | None, *, give_away: bool
    ) -> AnyArray:
        check_cancelled(cancelled)
        plane = self.plane
        decoder = BlockDecoder(plane, self._context.codecs)
        geometry = decoder.geometry
        with measured(times, "decode"):
            first = self._chunks.start * plane.rows_per_chunk
            symbols = sum(geometry.symbols(index) for index in self._chunks)
            if give_away and self._is_memory():
                flat = self._stored.view(numpy_dtype(plane.dtype))
                decoder.check(flat)
            else:
                flat = np.empty(symbols, numpy_dtype(plane.dtype))
                self._context.workers.run(list(self._tasks(decoder, flat)), cancelled)
            low = (self._rows[0] - first) * geometry.row_symbols
            high = (self._rows[1] - first) * geometry.row_symbols
            part = flat[low:high]
            # A few rows must not keep their whole chunks alive.
            if 2 * part.size < flat.size:
                part = part.copy()
            if not plane.shape:
                return part.reshape(())
            return part.reshape(self._rows[1] - self._rows[0], *plane.shape[1:])

    def _is_memory(self) -> bool:
        """Whether the stored bytes are the array itself: all raw, no filter."""
        return self.plane.filter == "none" and all(
            chunk.codec == "raw" for chunk in self.plane.streams[0].chunks
        )

    def _tasks(self, decoder: BlockDecoder, flat: AnyArray) -> list[Callable[[], None]]:
        tasks: list[Callable[[], None]] = []
        at = 0
        start = 0
        for index in self._chunks:
            stored = []
            for stream in self.plane.streams:
                size = stream.chunks[index].stored_bytes
                stored.append(self._stored[at : at + size])
                at += size
            end = start + decoder.geometry.symbols(index)
            tasks.append(partial(decoder.decode, index, stored, flat[start:end]))
            start = end
        return tasks


class BundleReader:
    """An open bundle. Every method is safe from many threads; also a context manager.

    `manifest` is validated; weights are read only when asked for. Phases are measured as wall time
    of the calling thread.
    """

    def __init__(
        self,
        file: BundleFile,
        manifest: Manifest,
        codecs: Mapping[str, Codec],
        threads: int,
    ) -> None:
        """Use `open`."""
        self.manifest = manifest
        self.path: Path = file.path
        self.file_bytes = file.size
        self._file = file
        workers = Workers(threads, f"tersor-read-{file.path.stem}")
        self._context = ReaderContext(codecs=codecs, workers=workers)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        times: PhaseTimes | None = None,
        threads: int | None = None,
    ) -> Self:
        """Opens and validates a bundle without reading a weight.

        Args:
            path: the file.
            times: gets the phase "open".
            threads: that read and decode one plane together; None is one a processor, at most 4.
                Started when first needed, ended by `close`.

        Raises:
            BundleNotFoundError: there is no such file.
            BundleFormatError: it is not a valid bundle (BundleTruncatedError: it was cut off).
            BundleCorruptError: the manifest is damaged.
            BundleLimitError: a declared size exceeds a cap of `limits`.
            BundleReadError: the operating system refuses.
        """
        with measured(times, "open"):
            file = BundleFile(path)
            try:
                codecs = default_codecs()
                manifest = read_manifest(file, cast(ZstdCodec, codecs["zstd"]))
            except BundleError as error:
                file.close()
                raise type(error)(f"{file.path}: {error}") from error
            except BaseException:
                file.close()
                raise
            return cls(file, manifest, codecs, default_threads() if threads is None else threads)

    def fetch_plane(
        self,
        plane: Plane,
        *,
        rows: tuple[int, int] | None = None,
        times: PhaseTimes | None = None,
        cancelled: Cancelled | None = None,
    ) -> EncodedPlane:
        """Reads the stored bytes of a plane of this bundle into host memory and verifies them.

        Args:
            plane: from `manifest`.
            rows: first row and the row after the last; None reads all. Only the chunks that cover
                them are read.
            times: gets the phases "read" and "verify".
            cancelled: polled between reads and between chunks.

        Raises:
            BundleCorruptError: a checksum does not match.
            BundleTruncatedError: the file has become shorter.
            BundleReadError: the operating system reports an error, or the reader is closed.
            BundleCancelledError: `cancelled()` became true.
            ValueError: `rows` is not a range within the plane.
        """
        geometry = Geometry.of_plane(plane)
        wanted = (0, geometry.rows) if rows is None else rows
        if not 0 <= wanted[0] <= wanted[1] <= geometry.rows:
            raise ValueError(
                f"rows {wanted} are not a range within the {geometry.rows} rows of plane "
                f"{plane.name!r}"
            )
        chunks = range(0)
        if geometry.num_chunks and wanted[0] < wanted[1]:
            chunks = range(wanted[0] // plane.rows_per_chunk, -(-wanted[1] // plane.rows_per_chunk))
        elif geometry.num_chunks:
            # No rows: nothing to read, and nothing to cut from.
            wanted = (0, 0)
        check_cancelled(cancelled)
        try:
            stored = self._fetch(plane, chunks, times, cancelled)
        except BundleError as error:
            raise type(error)(f"{self.path}: {error}") from error
        return EncodedPlane(plane, stored, chunks, wanted, self._context)

    def read_plane(
        self,
        plane: Plane,
        *,
        rows: tuple[int, int] | None = None,
        times: PhaseTimes | None = None,
        cancelled: Cancelled | None = None,
    ) -> AnyArray:
        """`fetch_plane` and `EncodedPlane.decode` in one: the array is the caller's own.

        Returns:
            dtype `numpy_dtype(plane.dtype)`: bf16 is uint16, f8_* is uint8, u4 is uint8 0..15;
            shape `plane.shape`, with the number of rows asked for.
        """
        encoded = self.fetch_plane(plane, rows=rows, times=times, cancelled=cancelled)
        try:
            # The encoded bytes end here, so a raw plane becomes the array without a copy.
            return encoded._decode(times, cancelled, give_away=True)  # noqa: SLF001 - same module
        except BundleError as error:
            raise type(error)(f"{self.path}: {error}") from error

    def read_asset(self, name: str) -> bytes:
        """The bytes of an asset, verified.

        Raises:
            BundleNotFoundError: the bundle has no such asset.
            BundleError: as for planes.
        """
        for asset in self.manifest.assets:
            if asset.name == name:
                try:
                    return self._read_asset(asset)
                except BundleError as error:
                    raise type(error)(f"{self.path}: asset {name!r}: {error}") from error
        names = ", ".join(asset.name for asset in self.manifest.assets) or "none"
        raise BundleNotFoundError(f"{self.path} has no asset {name!r}; it has: {names}")

    def close(self) -> None:
        """Waits for reads in progress, then closes the file and ends the threads."""
        self._file.close()
        self._context.workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fetch(
        self,
        plane: Plane,
        chunks: range,
        times: PhaseTimes | None,
        cancelled: Cancelled | None,
    ) -> ByteArray:
        run = self._context.workers.run
        selected = [
            (stream.chunks[index], partial(describe_chunk, plane, stream, index))
            for index in chunks
            for stream in plane.streams
        ]
        if not selected:
            return np.empty(0, np.uint8)
        # A plane's chunks lie one after the other: validated when the bundle was opened.
        base, last = selected[0][0].offset, selected[-1][0]
        stored = np.empty(last.offset + last.stored_bytes - base, np.uint8)
        reads: list[Callable[[], None]] = [
            partial(self._file.read_into, base + at, stored[at : at + _STEP_BYTES])
            for at in range(0, stored.size, _STEP_BYTES)
        ]
        with self._file.using():
            with measured(times, "read"):
                run(reads, cancelled)
            with measured(times, "verify"):
                run([partial(_verify, step, base, stored) for step in _steps(selected)], cancelled)
        return stored

    def _read_asset(self, asset: Asset) -> bytes:
        chunk = asset.chunk
        stored = np.empty(chunk.stored_bytes, np.uint8)
        with self._file.using():
            self._file.read_into(chunk.offset, stored)
        verify_chunk(stored, chunk, lambda: "its only chunk")
        return self._context.codecs[chunk.codec].decode(stored, chunk.raw_bytes).tobytes()


def _steps(chunks: Sequence[_Described]) -> Iterator[Sequence[_Described]]:
    """Consecutive chunks of about one step each."""
    start = 0
    size = 0
    for end, (chunk, _) in enumerate(chunks, 1):
        size += chunk.stored_bytes
        if size >= _STEP_BYTES or end == len(chunks):
            yield chunks[start:end]
            start, size = end, 0


def _verify(chunks: Sequence[_Described], base: int, stored: ByteArray) -> None:
    for chunk, describe in chunks:
        at = chunk.offset - base
        verify_chunk(stored[at : at + chunk.stored_bytes], chunk, describe)


def read_manifest(file: BundleFile, codec: ZstdCodec) -> Manifest:
    """Validates header and footer of an open file, and reads its manifest. Raises as `open`."""
    with file.using():
        header = np.empty(min(HEADER_BYTES, file.size), np.uint8)
        file.read_into(0, header)
        check_header(header.tobytes())
        if file.size < HEADER_BYTES + FOOTER_BYTES:
            raise BundleTruncatedError(
                f"the file is truncated: it has {file.size} bytes, fewer than a header and a "
                "footer; copy it again"
            )
        tail = np.empty(FOOTER_BYTES, np.uint8)
        file.read_into(file.size - FOOTER_BYTES, tail)
        footer = Footer.unpack(tail.tobytes(), file.size)
        stored = np.empty(footer.manifest_stored_bytes, np.uint8)
        file.read_into(footer.manifest_offset, stored)
    text = unpack_manifest(stored.tobytes(), footer, codec)
    return manifest_from_json(text, data_end=footer.manifest_offset)
