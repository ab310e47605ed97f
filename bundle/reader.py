"""Reading bundles: validated when opened, checksums verified on every load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self, cast

from tersor.bundle.codecs import Codec, ZstdCodec, default_codecs
from tersor.bundle.container import (
    FOOTER_BYTES,
    HEADER_BYTES,
    Footer,
    check_header,
    unpack_manifest,
)
from tersor.bundle.decoding import (
    Cancelled,
    Workers,
    check_cancelled,
    default_threads,
    memory_for,
    verify_chunk,
)
from tersor.bundle.dtypes import AnyArray
from tersor.bundle.encoded_plane import EncodedPlane, ReaderContext, RowSelection
from tersor.bundle.errors import BundleError, BundleNotFoundError, BundleTruncatedError
from tersor.bundle.manifest import Asset, Manifest, Plane
from tersor.bundle.manifest_json import manifest_from_json
from tersor.bundle.phases import PhaseTimes, measured
from tersor.bundle.plane_loader import PlaneLoader
from tersor.bundle.sources import Access, BundlePlace, ByteSource, open_source
from tersor.bundle.window import DEFAULT_WINDOW_BYTES, ByteWindow

__all__ = ["BundleReader", "EncodedPlane", "read_manifest"]

# How much of a remote bundle's end the first look takes: the footer and most manifests in one
# request. A chunk takes about 20 bytes of a stored manifest, so this holds some 12 000.
_REMOTE_TAIL_BYTES: Final = 256 << 10
_REMOTE_THREADS: Final = 4


class BundleReader:
    """An open bundle. Every method is safe from many threads; also a context manager.

    `manifest` is validated; weights are read only when asked for. Phases are measured as wall time
    of the calling thread.
    """

    def __init__(
        self,
        source: ByteSource,
        manifest: Manifest,
        codecs: Mapping[str, Codec],
        threads: int,
        window: ByteWindow,
    ) -> None:
        """Use `open`."""
        self.manifest = manifest
        self.name = source.name  # path or URL as messages show it, without secrets
        self.file_bytes = source.size
        self._source = source
        workers = Workers(threads, f"tersor-read-{source.name.rpartition('/')[2]}")
        self._context = ReaderContext(codecs=codecs, workers=workers)
        self._loader = PlaneLoader(source, self._context, window)

    @classmethod
    def open(
        cls,
        place: BundlePlace,
        *,
        access: Access = "read",
        times: PhaseTimes | None = None,
        threads: int | None = None,
        window_bytes: int = DEFAULT_WINDOW_BYTES,
    ) -> Self:
        """Opens and validates a bundle without reading a weight.

        Args:
            place: a path, an http or https URL, or a source, which the reader then closes.
            access: how a file is read; "map" maps it into memory (see `open_source`).
            times: gets the phase "open".
            threads: that read and decode one plane together; None is one a processor, at most 4,
                and 4 for a URL. Started when first needed, ended by `close`.
            window_bytes: most stored bytes that `read_plane` holds at once, read but not yet
                decoded, over all threads and planes. A block that is larger is let in alone.

        Raises:
            BundleNotFoundError: there is no such file or object.
            BundleFormatError: it is not a valid bundle (BundleTruncatedError: it was cut off).
            BundleCorruptError: the manifest is damaged.
            BundleLimitError: a declared size exceeds a cap of `limits`.
            BundleReadError: the operating system or the server refuses.
            ValueError: `window_bytes` is below 1, or `access` does not fit `place`.
        """
        window = ByteWindow(window_bytes)
        with measured(times, "open"):
            source = open_source(place, access=access)
            try:
                codecs = default_codecs()
                manifest = read_manifest(source, cast(ZstdCodec, codecs["zstd"]))
            except BundleError as error:
                source.close()
                raise type(error)(f"{source.name}: {error}") from error
            except BaseException:
                source.close()
                raise
            if threads is None:
                # Threads that wait for a server need no processor.
                threads = _REMOTE_THREADS if source.is_remote else default_threads()
            return cls(source, manifest, codecs, threads, window)

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
            cancelled: polled between blocks, and while a server is waited for.

        Raises:
            BundleCorruptError: a checksum does not match.
            BundleTruncatedError: the file has become shorter.
            BundleReadError: the operating system or the server reports an error, the object was
                replaced, or the reader is closed.
            BundleLimitError: the plane does not fit into memory.
            BundleCancelledError: `cancelled()` became true.
            ValueError: `rows` is not a range within the plane.
        """
        selection = RowSelection.of(plane, rows)
        check_cancelled(cancelled)
        with self._naming():
            stored, tables = self._loader.fetch(selection, times, cancelled)
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

        Peak memory is the array, the window of stored bytes and what decoding a block takes; raw
        planes are read straight into the array. The array is address space at first: a block takes
        memory once it was read and verified. Arguments and errors are those of `fetch_plane`;
        `times` gets "read", "verify" and "decode".

        Returns:
            dtype `numpy_dtype(plane.dtype)`: bf16 is uint16, f8_* is uint8, u4 is uint8 0..15;
            shape `plane.shape`, with the number of rows asked for.
        """
        selection = RowSelection.of(plane, rows)
        check_cancelled(cancelled)
        with self._naming():
            return self._loader.read(selection, times, cancelled)

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
                    raise type(error)(f"{self.name}: asset {name!r}: {error}") from error
        names = ", ".join(asset.name for asset in self.manifest.assets) or "none"
        raise BundleNotFoundError(f"{self.name} has no asset {name!r}; it has: {names}")

    def read_format_version(self) -> int:
        """The version of the format that the file was written in. Raises BundleReadError."""
        with self._source.using():
            return _read_version(self._source)

    def close(self) -> None:
        """Waits for reads in progress, then closes the source and ends the threads."""
        self._source.close()
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
    def _naming(self) -> Iterator[None]:
        """Puts the bundle's name before every error."""
        try:
            yield
        except BundleError as error:
            raise type(error)(f"{self.name}: {error}") from error

    def _read_asset(self, asset: Asset) -> bytes:
        chunk = asset.chunk
        with memory_for("it", chunk.raw_bytes), self._source.using():
            stored = self._source.load(chunk.offset, chunk.stored_bytes)
            verify_chunk(stored, chunk, lambda: "its only chunk")
            return self._context.codecs[chunk.codec].decode(stored, chunk.raw_bytes).tobytes()


def read_manifest(source: ByteSource, codec: ZstdCodec) -> Manifest:
    """Validates header and footer of an open source, and reads its manifest. Raises as `open`."""
    with source.using():
        version = _read_version(source)
        if source.size < HEADER_BYTES + FOOTER_BYTES:
            raise BundleTruncatedError(
                f"the file is truncated: it has {source.size} bytes, fewer than a header and a "
                "footer; copy it again"
            )
        wanted = _REMOTE_TAIL_BYTES if source.is_remote else FOOTER_BYTES
        tail = source.load(max(0, source.size - wanted), min(wanted, source.size))
        footer = Footer.unpack(tail[-FOOTER_BYTES:].tobytes(), source.size, version)
        size = footer.manifest_stored_bytes
        if FOOTER_BYTES + size <= tail.size:
            stored = tail[-FOOTER_BYTES - size : -FOOTER_BYTES]
        else:
            stored = source.load(footer.manifest_offset, size)
    with memory_for("the manifest", footer.manifest_raw_bytes):
        text = unpack_manifest(stored.tobytes(), footer, codec)
        return manifest_from_json(text, data_end=footer.manifest_offset)


def _read_version(source: ByteSource) -> int:
    return check_header(source.load(0, min(HEADER_BYTES, source.size)).tobytes())
