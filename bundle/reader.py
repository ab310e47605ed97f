"""Reading bundles: validated when opened, checksums verified on every load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
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
    load_tables,
    memory_for,
    read_chunks,
    verify_chunk,
)
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.encoded_plane import EncodedPlane, ReaderContext, RowSelection
from tersor.bundle.errors import BundleError, BundleNotFoundError, BundleTruncatedError, path_text
from tersor.bundle.manifest import Asset, Manifest, Plane
from tersor.bundle.manifest_json import manifest_from_json
from tersor.bundle.phases import PhaseTimes, measured, shared

__all__ = ["BundleReader", "EncodedPlane"]

# Blocks that one task reads, at most: enough that the pool costs nothing beside them.
_MAX_TASK_BLOCKS = 8


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
                raise type(error)(f"{path_text(file.path)}: {error}") from error
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
            cancelled: polled between blocks.

        Raises:
            BundleCorruptError: a checksum does not match.
            BundleTruncatedError: the file has become shorter.
            BundleReadError: the operating system reports an error, or the reader is closed.
            BundleLimitError: the plane does not fit into memory.
            BundleCancelledError: `cancelled()` became true.
            ValueError: `rows` is not a range within the plane.
        """
        selection = RowSelection.of(plane, rows)
        check_cancelled(cancelled)
        tables = self._tables(plane, times)
        decoder = BlockDecoder(plane, self._context.codecs, tables)
        sizes = [decoder.stored_bytes(block) for block in selection.blocks]
        starts = [0, *accumulate(sizes)]
        with self._loading(plane, starts[-1]):
            stored = np.empty(starts[-1], np.uint8)

            def load(block: int, busy: PhaseTimes | None) -> None:
                number = block - selection.blocks.start
                part = stored[starts[number] : starts[number + 1]]
                self._load_block(decoder, block, part, busy)

            self._run(selection, load, times, cancelled)
        return EncodedPlane(selection, stored, tables, self._context)

    def read_plane(
        self,
        plane: Plane,
        *,
        rows: tuple[int, int] | None = None,
        times: PhaseTimes | None = None,
        cancelled: Cancelled | None = None,
    ) -> AnyArray:
        """Reads, verifies and decodes a plane of this bundle, block by block into its array.

        Peak memory is the array and a few blocks; raw planes are read straight into it. The array
        is address space at first: a block takes memory once it was read and verified. Arguments and
        errors are those of `fetch_plane`; `times` gets "read", "verify" and "decode".

        Returns:
            dtype `numpy_dtype(plane.dtype)`: bf16 is uint16, f8_* is uint8, u4 is uint8 0..15;
            shape `plane.shape`, with the number of rows asked for.
        """
        selection = RowSelection.of(plane, rows)
        check_cancelled(cancelled)
        decoder = BlockDecoder(plane, self._context.codecs, self._tables(plane, times))
        with self._loading(plane, selection.raw_bytes):
            array = selection.new_array()

            def load(block: int, busy: PhaseTimes | None) -> None:
                part = selection.part(array, block)
                if decoder.is_memory(block):
                    stored = part.view(np.uint8)
                else:
                    stored = np.empty(decoder.stored_bytes(block), np.uint8)
                self._load_block(decoder, block, stored, busy)
                with measured(busy, "decode"):
                    decoder.decode(block, stored, part)

            self._run(selection, load, times, cancelled)
            return selection.cut(array)

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
                    where = f"{path_text(self.path)}: asset {name!r}"
                    raise type(error)(f"{where}: {error}") from error
        names = ", ".join(asset.name for asset in self.manifest.assets) or "none"
        raise BundleNotFoundError(f"{path_text(self.path)} has no asset {name!r}; it has: {names}")

    def read_format_version(self) -> int:
        """The version of the format that the file was written in. Raises BundleReadError."""
        with self._file.using():
            return _read_version(self._file)

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

    @contextmanager
    def _loading(self, plane: Plane, declared_bytes: int) -> Iterator[None]:
        """Puts the path before every error, and says what does not fit into memory."""
        try:
            with memory_for(f"plane {plane.name!r}", declared_bytes):
                yield
        except BundleError as error:
            raise type(error)(f"{path_text(self.path)}: {error}") from error

    def _run(
        self,
        selection: RowSelection,
        load: Callable[[int, PhaseTimes | None], None],
        times: PhaseTimes | None,
        cancelled: Cancelled | None,
    ) -> None:
        """Loads all blocks of a selection, several at once."""

        def load_some(blocks: range, busy: PhaseTimes | None) -> None:
            for block in blocks:
                check_cancelled(cancelled)
                load(block, busy)

        workers = self._context.workers
        step = -(-len(selection.blocks) // (2 * workers.threads))
        step = max(1, min(step, _MAX_TASK_BLOCKS))
        with self._file.using(), shared(times) as busy:
            workers.run(
                [
                    partial(load_some, selection.blocks[start : start + step], busy)
                    for start in range(0, len(selection.blocks), step)
                ],
                cancelled,
            )

    def _load_block(
        self, decoder: BlockDecoder, block: int, out: ByteArray, busy: PhaseTimes | None
    ) -> None:
        """Reads a block and verifies it while it is still in the cache."""
        with measured(busy, "read"):
            read_chunks(self._file, decoder.chunks(block), out)
        with measured(busy, "verify"):
            decoder.verify(block, out)

    def _tables(self, plane: Plane, times: PhaseTimes | None) -> tuple[ByteArray | None, ...]:
        """What the plane's streams share: a few KiB, read before its blocks."""
        if all(stream.table is None for stream in plane.streams):
            return (None,) * len(plane.streams)
        with self._loading(plane, 0), self._file.using(), measured(times, "read"):
            return load_tables(self._file, plane, self._context.codecs)

    def _read_asset(self, asset: Asset) -> bytes:
        chunk = asset.chunk
        with memory_for("it", chunk.raw_bytes):
            stored = np.empty(chunk.stored_bytes, np.uint8)
            with self._file.using():
                self._file.read_into(chunk.offset, stored)
            verify_chunk(stored, chunk, lambda: "its only chunk")
            return self._context.codecs[chunk.codec].decode(stored, chunk.raw_bytes).tobytes()


def read_manifest(file: BundleFile, codec: ZstdCodec) -> Manifest:
    """Validates header and footer of an open file, and reads its manifest. Raises as `open`."""
    with file.using():
        _read_version(file)
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
    with memory_for("the manifest", footer.manifest_raw_bytes):
        text = unpack_manifest(stored.tobytes(), footer, codec)
        return manifest_from_json(text, data_end=footer.manifest_offset)


def _read_version(file: BundleFile) -> int:
    header = np.empty(min(HEADER_BYTES, file.size), np.uint8)
    file.read_into(0, header)
    return check_header(header.tobytes())
