"""Writing bundles: one tensor in memory at a time, the same input always the same bytes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from tersor.bundle import limits
from tersor.bundle.atomic_file import AtomicFile
from tersor.bundle.codecs import AUTO, ZstdCodec, default_codecs
from tersor.bundle.container import pack_header
from tersor.bundle.decoding import default_threads
from tersor.bundle.digests import checksum, content_digest, digest_array, digest_bytes
from tersor.bundle.dtypes import AnyArray, Geometry, rows_per_chunk
from tersor.bundle.encoding import (
    DECODE_FLOOR_MB_PER_SECOND,
    Chooser,
    EncodedChunk,
    PlanePlan,
    block_of,
    block_target,
)
from tersor.bundle.ending import Ending
from tersor.bundle.errors import BundleError, BundleLimitError, BundleWriteError, path_text
from tersor.bundle.json_fields import as_text, check_unique
from tersor.bundle.manifest import (
    Asset,
    Chunk,
    Group,
    JsonScalar,
    Manifest,
    Plane,
    SourceSlice,
    Stream,
    TensorEntry,
)
from tersor.bundle.manifest_json import checked_tensor, manifest_from_json, manifest_to_json
from tersor.bundle.parity import check_fraction, plan_parity
from tersor.bundle.plane_data import PlaneData, contiguous
from tersor.bundle.producer import producer as this_producer
from tersor.bundle.program import Program
from tersor.bundle.program_json import program_from_json, program_to_json
from tersor.bundle.strict_json import check_free
from tersor.bundle.validate import PlaneKey, check_asset, check_plane


class BundleWriter:
    """Streams a bundle to disk; a context manager, and not for several threads at once.

    Leaving the `with` block without `commit()` removes the temporary file. After an error the
    writer only can be left: nothing of it reaches `path`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        program: Program,
        source: Mapping[str, Any],
        recipe: Mapping[str, Any],
        codec: str = AUTO,
        decode_floor: float = DECODE_FLOOR_MB_PER_SECOND,
        producer: str = "",
        threads: int | None = None,
        parity: float | None = None,
    ) -> None:
        """Opens a temporary file beside `path`.

        Args:
            path: where the bundle appears at `commit()`, replacing a file of that name.
            program: how the bundle runs; validated here.
            source: JSON: what the bundle was made from.
            recipe: JSON: what was done to it.
            codec: "auto" measures all codecs per chunk; a name uses that one, and raw where it
                does not pay.
            decode_floor: MB/s that a codec must be rated to decode on one core, for "auto" to
                choose it.
            producer: program and version; "" is this one's.
            threads: that encode one plane together, at most 2 by default; the bytes do not depend
                on it.
            parity: parity blocks for each block of data, 0.005 to 0.5; None is no parity.

        Raises:
            BundleWriteError: the codec is unknown, the program or the JSON is not valid, `parity`
                is out of range, or the folder cannot be written.
        """
        self._codecs = default_codecs()
        self._chooser = Chooser(self._codecs, codec, decode_floor)
        with _as_write_error("the bundle"):
            self._program = program_from_json(program_to_json(program))
            check_free(dict(source), "source")
            check_free(dict(recipe), "recipe")
        if parity is not None:
            check_fraction(parity)
        self._parity = parity
        self._source = dict(source)
        self._recipe = dict(recipe)
        self._producer = producer or this_producer()
        self._threads = min(2, default_threads()) if threads is None else threads
        self._tensors: dict[str, TensorEntry] = {}
        self._groups: dict[str, list[str]] = {}
        self._origins: set[str] = set()  # names of sources and aliases, each to be extracted once
        self._assets: list[tuple[Asset, bytes, str]] = []
        # One plane a key: equal bytes of equal dtype and shape are stored once.
        self._stored: dict[PlaneKey, Plane] = {}
        # Chunks by raw content and the table they need: equal ones are stored once.
        self._placed: dict[tuple[str, int], Chunk] = {}
        self._raw_bytes = 0  # of all chunks, shared ones each time
        self._state = "open"
        self._pool: ThreadPoolExecutor | None = None
        self._file = AtomicFile(Path(path))
        self._file.append(pack_header())

    def add_asset(self, name: str, data: bytes, media_type: str) -> None:
        """Adds a file; kept compressed in memory until `commit`, since assets follow the weights.

        Raises:
            BundleWriteError: the name is taken or not a plain relative path, or it is too large.
        """
        self._require_open()
        if any(asset.name == name for asset, _, _ in self._assets):
            raise BundleWriteError(f"the asset {name!r} was already added")
        if not data:
            raise BundleWriteError(f"the asset {name!r} is empty; leave it out")
        encoded = self._as_text(data)
        stored = encoded.data
        asset = Asset(name=name, media_type=media_type, chunk=encoded.at(0))
        with _as_write_error(f"asset {name!r}"):
            as_text(name, "its name", max_bytes=limits.MAX_NAME_BYTES)
            as_text(media_type, "its media type", max_bytes=limits.MAX_NAME_BYTES)
            check_asset(asset)
        self._assets.append((asset, stored, encoded.digest))

    def add_tensor(
        self,
        *,
        name: str,
        group: str,
        shape: Sequence[int],
        dtype: str,
        layout: str,
        params: Mapping[str, JsonScalar],
        planes: Mapping[str, PlaneData],
        sources: Sequence[SourceSlice] = (),
        aliases: Sequence[str] = (),
    ) -> TensorEntry:
        """Encodes a tensor's planes and appends them to the file; keeps no reference to them.

        Args:
            name: different from every other tensor's.
            group: the group it becomes resident with; groups stand in order of first use, which
                must be the order of execution.
            shape: logical shape.
            dtype: logical dtype name.
            layout: the form it is computed in, such as "dense".
            params: the layout's parameters.
            planes: name -> array, in the layout's order.
            sources: which source tensors its rows are, in order; all rows or none.
            aliases: further source names of the very same bytes.

        Returns:
            The entry as it will stand in the manifest.

        Raises:
            BundleWriteError: the name is taken, an array does not have its dtype, a symbol is out
                of range, the sources do not fill the shape, or the file cannot be written.
        """
        entry = TensorEntry(
            name=name,
            shape=tuple(int(dim) for dim in shape),
            dtype=dtype,
            layout=layout,
            params=dict(params),
            planes=(),
            sources=tuple(sources),
            aliases=tuple(aliases),
        )
        return self._add(entry, group, planes)

    def commit(self, *, certificate: Mapping[str, Any] | None = None) -> Manifest:
        """Writes assets, manifest and footer, makes the file durable and gives it its name.

        Raises:
            BundleWriteError: the bundle would not be valid (a graph without its asset, …), or the
                file cannot be written.
        """
        self._require_open()
        self._state = "failed"
        assets = []
        for asset, stored, _ in self._assets:
            offset = self._file.append(stored)
            assets.append(replace(asset, chunk=replace(asset.chunk, offset=offset)))
        planes = (plane.digest for entry in self._tensors.values() for plane in entry.planes)
        end = self._file.offset
        parity = None if self._parity is None else plan_parity(end, self._parity)
        manifest = Manifest(
            program=self._program,
            tensors=tuple(self._tensors.values()),
            groups=tuple(
                Group(name=name, tensors=tuple(names)) for name, names in self._groups.items()
            ),
            assets=tuple(assets),
            recipe=self._recipe,
            source=self._source,
            certificate=None if certificate is None else dict(certificate),
            producer=self._producer,
            digest=content_digest([*planes, *(digest for _, _, digest in self._assets)]),
            parity=parity,
        )
        with _as_write_error("the bundle"):
            if certificate is not None:
                check_free(dict(certificate), "certificate")
            text = manifest_to_json(manifest)
            # What is written is what a reader will see, and only if a reader will accept it.
            manifest = manifest_from_json(text, data_end=parity.offset if parity else end)
            zstd = cast(ZstdCodec, self._codecs["zstd"])
            ending = Ending.of(text, end, parity, zstd)
        ending.append(self._file, threads=self._threads)
        self._file.publish()
        self._state = "committed"
        self._end_threads()
        return manifest

    def close(self) -> None:
        """Ends the threads, and removes the temporary file unless the bundle was committed."""
        self._end_threads()
        if self._state != "committed":
            self._file.discard()
            self._state = "closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._state != "open":
            raise BundleWriteError(
                f"the writer of {path_text(self._file.path)} is {self._state}; make a new one"
            )

    def _add(self, entry: TensorEntry, group: str, planes: Mapping[str, PlaneData]) -> TensorEntry:
        self._require_open()
        if entry.name in self._tensors:
            raise BundleWriteError(f"the tensor {entry.name!r} was already added")
        self._state = "failed"
        with _as_write_error(f"tensor {entry.name!r}"):
            as_text(group, "its group", max_bytes=limits.MAX_NAME_BYTES)
            origins = (*(source.tensor for source in entry.sources), *entry.aliases)
            check_unique(origins, "its sources and aliases")
            for origin in origins:
                if origin in self._origins:
                    raise BundleWriteError(f"the source {origin!r} is already another tensor's")
            arrays = {key: contiguous(key, data) for key, data in planes.items()}
            written = tuple(
                self._write_plane(key, planes[key].dtype, array) for key, array in arrays.items()
            )
            entry = checked_tensor(replace(entry, planes=written))
        self._origins.update(origins)
        self._tensors[entry.name] = entry
        self._groups.setdefault(group, []).append(entry.name)
        self._state = "open"
        return entry

    def _write_plane(self, name: str, dtype: str, array: AnyArray) -> Plane:
        digest = digest_array(array)
        key = (digest, dtype, array.shape)
        if key not in self._stored:
            self._stored[key] = self._encode_plane(dtype, array, digest)
        return replace(self._stored[key], name=name)

    def _encode_plane(self, dtype: str, array: AnyArray, digest: str) -> Plane:
        rows = rows_per_chunk(array.shape, dtype, block_target(array.nbytes))
        geometry = Geometry.of(array.shape, dtype, rows)
        if geometry.row_bytes > limits.MAX_BLOCK_RAW_BYTES:
            raise BundleLimitError(
                f"a plane has rows of {geometry.row_bytes} bytes, which are never split; expected "
                f"at most {limits.MAX_BLOCK_RAW_BYTES}, so give it more rows"
            )
        flat = array.reshape(-1)
        plan = self._chooser.plan(dtype, flat, geometry)
        aligned = array.nbytes < limits.MIN_ALIGNED_PLANE_BYTES

        def place(encoded: EncodedChunk, table: Chunk | None) -> Chunk:
            nonlocal aligned
            key = (encoded.digest, table.offset if table else 0)
            self._raw_bytes += encoded.raw_bytes
            if key in self._placed and self._may_share():
                return self._placed[key]
            if not aligned:
                self._file.align(limits.PLANE_ALIGNMENT)
                aligned = True
            self._placed[key] = encoded.at(self._file.append(encoded.data))
            return self._placed[key]

        tables = [
            None if stream.table is None else place(self._as_text(stream.table.tobytes()), None)
            for stream in plan.streams
        ]
        chunks: list[list[Chunk]] = [[] for _ in plan.streams]
        for block in self._encoded_blocks(dtype, flat, geometry, plan):
            for placed, encoded, table in zip(chunks, block, tables, strict=True):
                placed.append(place(encoded, table))
        plane = Plane(
            name="",
            dtype=dtype,
            shape=array.shape,
            filter=plan.filter.name,
            rows_per_chunk=rows,
            digest=digest,
            streams=tuple(
                Stream(name=stream_name, chunks=tuple(placed), table=table)
                for stream_name, placed, table in zip(
                    plan.filter.stream_names(dtype), chunks, tables, strict=True
                )
            ),
        )
        check_plane(plane, "a plane")
        return plane

    def _encoded_blocks(
        self, dtype: str, flat: AnyArray, geometry: Geometry, plan: PlanePlan
    ) -> Iterator[list[EncodedChunk]]:
        """The blocks in order, encoded by several threads a few ahead of the file."""

        def encode(index: int) -> list[EncodedChunk]:
            streams = plan.filter.split(dtype, block_of(flat, geometry, index))
            return [
                self._chooser.encode(stream, how)
                for stream, how in zip(streams, plan.streams, strict=True)
            ]

        if self._threads < 2 or geometry.num_chunks < 2:
            yield from map(encode, range(geometry.num_chunks))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "tersor-write")
        pending: deque[Future[list[EncodedChunk]]] = deque()
        for index in range(geometry.num_chunks):
            pending.append(self._pool.submit(encode, index))
            if len(pending) > 2 * self._threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _may_share(self) -> bool:
        """Whether what a reader would have to decode stays in proportion to the file."""
        return self._raw_bytes <= limits.MAX_EXPANSION * self._file.offset

    def _as_text(self, data: bytes) -> EncodedChunk:
        """Assets and tables: zstd at a high level, raw where that does not pay."""
        zstd = cast(ZstdCodec, self._codecs["zstd"])
        stored, codec = zstd.encode_text(np.frombuffer(data, np.uint8)), "zstd"
        if len(stored) >= len(data):
            stored, codec = data, "raw"
        return EncodedChunk(
            data=stored,
            raw_bytes=len(data),
            codec=codec,
            checksum=checksum(stored),
            digest=digest_bytes(data),
        )

    def _end_threads(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _as_write_error(what: str) -> Iterator[None]:
    """What a reader would refuse as a bad bundle is a misuse of the writer."""
    try:
        yield
    except BundleWriteError as error:
        raise BundleWriteError(f"{what}: {error}") from error
    except BundleError as error:
        raise BundleWriteError(f"{what} cannot be written: {error}") from error


__all__ = ["BundleWriter", "PlaneData"]
