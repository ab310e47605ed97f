"""What must hold between the fields of a manifest, beyond each field's own type and range.

The same checks stand behind reader and writer: a bundle that cannot be read cannot be written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from tersor.bundle import limits
from tersor.bundle.codecs import MAX_RATIOS
from tersor.bundle.container import HEADER_BYTES
from tersor.bundle.dtypes import Geometry
from tersor.bundle.errors import BundleFormatError, BundleLimitError
from tersor.bundle.filters import FILTERS
from tersor.bundle.json_fields import check_unique
from tersor.bundle.manifest import DTYPES, Asset, Chunk, Manifest, Plane, TensorEntry
from tersor.bundle.parity import check_parity
from tersor.bundle.program import UNUSED_GROUP, GraphProgram

# Assets are written out by `tersor extract`: no way out of its folder, on any system.
_ASSET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")

PlaneKey = tuple[str, str, tuple[int, ...]]


def validate(manifest: Manifest, *, data_end: int) -> None:
    """Checks a manifest whose chunk data must fill the file from the header to `data_end`.

    With parity, `data_end` is where its section ends, and chunk data ends before it.

    Raises:
        BundleFormatError: two fields contradict each other.
        BundleLimitError: a plane or a chunk exceeds a cap of `limits`.
    """
    check_unique(tuple(tensor.name for tensor in manifest.tensors), "the manifest's tensors")
    for tensor in manifest.tensors:
        check_tensor(tensor)
    # At rest, not in each tensor: a million tensors may share one plane of a million chunks.
    for tensor, plane in _first_uses(manifest):
        check_plane(plane, f"plane {plane.name!r} of tensor {tensor.name!r}")
    for asset in manifest.assets:
        check_asset(asset)
    _check_asset_names(tuple(asset.name for asset in manifest.assets))
    _check_sources(manifest)
    _check_groups(manifest)
    _check_program(manifest)
    if manifest.parity is not None:
        check_parity(manifest.parity, data_end)
        data_end = manifest.parity.offset
    _check_places(manifest, data_end)


def check_tensor(tensor: TensorEntry) -> None:
    """Checks one tensor's planes, sources and aliases against each other."""
    where = f"tensor {tensor.name!r}"
    if not tensor.planes:
        raise BundleFormatError(f"{where} has no planes; expected at least one")
    check_unique(tuple(plane.name for plane in tensor.planes), f"the planes of {where}")
    _check_extent(tensor.shape, tensor.dtype, where)
    if not tensor.sources:
        if tensor.aliases:
            raise BundleFormatError(f"{where} has aliases but no source that they repeat")
        return
    if tensor.aliases and len(tensor.sources) != 1:
        raise BundleFormatError(
            f"{where} has aliases and {len(tensor.sources)} sources; an alias repeats exactly one"
        )
    rows = tensor.shape[0] if tensor.shape else 1
    row_symbols = math.prod(tensor.shape[1:])
    covered = sum(source.rows for source in tensor.sources)
    if covered != rows:
        raise BundleFormatError(f"the sources of {where} cover {covered} rows of {rows}")
    for source in tensor.sources:
        _check_extent(source.shape, source.dtype, f"source {source.tensor!r} of {where}")
        if math.prod(source.shape) != source.rows * row_symbols:
            raise BundleFormatError(
                f"source {source.tensor!r} of {where} has shape {list(source.shape)}, which does "
                f"not fill {source.rows} rows of {row_symbols}"
            )


def check_plane(plane: Plane, where: str) -> None:
    """Checks a plane's chunks against its shape, dtype and filter."""
    if plane.raw_bytes > limits.MAX_PLANE_RAW_BYTES:
        raise BundleLimitError(
            f"{where} has {plane.raw_bytes} raw bytes; this build reads at most "
            f"{limits.MAX_PLANE_RAW_BYTES}"
        )
    _check_extent(plane.shape, plane.dtype, where)
    geometry = Geometry.of_plane(plane)
    entry = FILTERS[plane.filter]
    if plane.dtype not in entry.dtypes:
        raise BundleFormatError(
            f"{where} has the filter {plane.filter}, which does not split {plane.dtype}"
        )
    names = entry.stream_names(plane.dtype)
    if tuple(stream.name for stream in plane.streams) != names:
        raise BundleFormatError(
            f"{where} has other streams than its filter {plane.filter} makes: {', '.join(names)}"
        )
    if any(len(stream.chunks) != geometry.num_chunks for stream in plane.streams):
        counts = ", ".join(str(len(stream.chunks)) for stream in plane.streams)
        raise BundleFormatError(
            f"{where} has {counts} chunks; its shape and rows_per_chunk make {geometry.num_chunks}"
        )
    if geometry.num_chunks == 0:
        if any(stream.table is not None for stream in plane.streams):
            raise BundleFormatError(f"{where} has a table but no chunk that could use it")
        return
    if geometry.block_bytes > limits.MAX_BLOCK_RAW_BYTES:
        raise BundleLimitError(
            f"{where} has blocks of {geometry.block_bytes} raw bytes; this build reads at most "
            f"{limits.MAX_BLOCK_RAW_BYTES}"
        )
    _check_chunks(plane, geometry, where)


def _check_extent(shape: tuple[int, ...], dtype: str, where: str) -> None:
    """Whether an array of that shape can be, even where it is empty."""
    extent = (math.prod(shape) or math.prod([dim or 1 for dim in shape])) * DTYPES[dtype]
    if extent > limits.MAX_EXTENT_BYTES:
        raise BundleLimitError(
            f"{where} has the shape {list(shape)}; this build reads shapes of at most "
            f"{limits.MAX_EXTENT_BYTES} bytes, dimensions of 0 taken as 1"
        )


def _check_chunks(plane: Plane, geometry: Geometry, where: str) -> None:
    # All chunks but the last cover the same rows, so only two sizes can occur.
    entry = FILTERS[plane.filter]
    end = geometry.num_chunks - 1
    full = entry.stream_bytes(plane.dtype, geometry.block_rows(0), geometry.row_symbols)
    last = entry.stream_bytes(plane.dtype, geometry.block_rows(end), geometry.row_symbols)
    for stream, full_bytes, last_bytes in zip(plane.streams, full, last, strict=True):
        for index, chunk in enumerate(stream.chunks):
            expected = last_bytes if index == end else full_bytes
            if chunk.raw_bytes != expected:
                raise BundleFormatError(
                    f"chunk {index} of stream {stream.name!r} of {where} declares "
                    f"{chunk.raw_bytes} raw bytes; its rows make {expected}"
                )
            _check_stored(chunk, where)
        if stream.table is not None:
            if stream.table.raw_bytes > limits.MAX_TABLE_RAW_BYTES:
                raise BundleLimitError(
                    f"the table of stream {stream.name!r} of {where} has {stream.table.raw_bytes} "
                    f"raw bytes; this build reads at most {limits.MAX_TABLE_RAW_BYTES}"
                )
            _check_stored(stream.table, where)


def check_asset(asset: Asset) -> None:
    """Checks an asset's name and sizes."""
    if not _ASSET_NAME.fullmatch(asset.name):
        raise BundleFormatError(
            f"the asset name {asset.name!r} is not a plain relative path of letters, digits and "
            "._+- that does not start with a dot"
        )
    if asset.chunk.raw_bytes > limits.MAX_ASSET_RAW_BYTES:
        raise BundleLimitError(
            f"asset {asset.name!r} has {asset.chunk.raw_bytes} raw bytes; this build reads at most "
            f"{limits.MAX_ASSET_RAW_BYTES}"
        )
    _check_stored(asset.chunk, f"asset {asset.name!r}")


def plane_key(plane: Plane) -> PlaneKey:
    """What makes two planes one at rest: equal bytes, dtype and shape."""
    return (plane.digest, plane.dtype, plane.shape)


def stored_planes(manifest: Manifest) -> Iterator[Plane]:
    """Each plane at rest once, in the order of the file."""
    for _, plane in _first_uses(manifest):
        yield plane


def _first_uses(manifest: Manifest) -> Iterator[tuple[TensorEntry, Plane]]:
    """Each plane at rest, with the first tensor that uses it."""
    seen: set[PlaneKey] = set()
    for tensor in manifest.tensors:
        for plane in tensor.planes:
            key = plane_key(plane)
            if key not in seen:
                seen.add(key)
                yield tensor, plane


def _check_asset_names(names: tuple[str, ...]) -> None:
    check_unique(names, "the manifest's assets")
    files = set(names)
    for name in names:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder in files:
                raise BundleFormatError(
                    f"the asset {folder!r} is also the folder of the asset {name!r}"
                )


def _check_stored(chunk: Chunk, where: str) -> None:
    """Both ways: neither side of a chunk lets a small file ask for much memory."""
    ratio = MAX_RATIOS[chunk.codec]
    if not chunk.stored_bytes <= chunk.raw_bytes <= chunk.stored_bytes * ratio:
        raise BundleFormatError(
            f"a chunk of {where} cannot hold {chunk.raw_bytes} raw bytes in {chunk.stored_bytes} "
            f"bytes of {chunk.codec}; expected {-(-chunk.raw_bytes // ratio)} to {chunk.raw_bytes}"
        )


def _check_sources(manifest: Manifest) -> None:
    """Every source name once: extraction writes each of them."""
    names = [
        name
        for tensor in manifest.tensors
        for name in (*(source.tensor for source in tensor.sources), *tensor.aliases)
    ]
    check_unique(tuple(names), "the manifest's sources and aliases")


def _check_groups(manifest: Manifest) -> None:
    check_unique(tuple(group.name for group in manifest.groups), "the manifest's groups")
    known = {tensor.name for tensor in manifest.tensors}
    grouped: dict[str, str] = {}
    for group in manifest.groups:
        if not group.tensors:
            raise BundleFormatError(f"group {group.name!r} is empty; leave it out")
        for name in group.tensors:
            if name not in known:
                raise BundleFormatError(
                    f"group {group.name!r} holds {name!r}, which is no tensor of the bundle"
                )
            if name in grouped:
                raise BundleFormatError(
                    f"tensor {name!r} is in the groups {grouped[name]!r} and {group.name!r}; "
                    "expected exactly one"
                )
            grouped[name] = group.name
    if len(grouped) != len(known):
        missing = min(known - grouped.keys())
        raise BundleFormatError(f"tensor {missing!r} is in no group; expected exactly one")


def _check_program(manifest: Manifest) -> None:
    program = manifest.program
    if not isinstance(program, GraphProgram):
        return
    assets = {asset.name for asset in manifest.assets}
    if program.graph_asset not in assets:
        raise BundleFormatError(
            f"the program is the asset {program.graph_asset!r}, which the bundle does not have"
        )
    groups = {group.name for group in manifest.groups} - {UNUSED_GROUP}
    if program.group_order and set(program.group_order) - {UNUSED_GROUP} != groups:
        raise BundleFormatError(
            "group_order of the program lists other groups than the bundle has: "
            f"{', '.join(sorted(groups.symmetric_difference(program.group_order))[:5])}"
        )


def _check_places(manifest: Manifest, data_end: int) -> None:
    """Chunks fill the file in one known order: no hole but alignment, no overlap but whole chunks.

    A chunk stands where the one before it ends, or is one that has stood before, in every field.
    """
    # A hole would hide bytes from every check, and let one file be a valid file of another format.
    cursor = HEADER_BYTES
    placed: dict[int, Chunk] = {}
    raw_bytes = 0
    for plane in stored_planes(manifest):
        aligned = -(-cursor // limits.PLANE_ALIGNMENT) * limits.PLANE_ALIGNMENT
        first = True
        for chunk, stream in plane_chunks(plane):
            raw_bytes += chunk.raw_bytes
            if placed.get(chunk.offset) == chunk:
                continue
            if first and chunk.offset == aligned:
                cursor = aligned
            cursor = _place(chunk, cursor, f"stream {stream!r}", data_end)
            placed[chunk.offset] = chunk
            first = False
    for asset in manifest.assets:
        cursor = _place(asset.chunk, cursor, f"asset {asset.name!r}", data_end)
    if manifest.parity is not None:
        cursor = -(-cursor // limits.PARITY_BLOCK_UNIT) * limits.PARITY_BLOCK_UNIT
    if cursor != data_end:
        raise BundleFormatError(f"{data_end - cursor} bytes before the manifest belong to no chunk")
    if raw_bytes > limits.MAX_EXPANSION * data_end:
        raise BundleLimitError(
            f"the planes' chunks declare {raw_bytes} raw bytes; in a file with {data_end} bytes of "
            f"chunks this build reads at most {limits.MAX_EXPANSION * data_end}"
        )


def plane_chunks(plane: Plane) -> Iterator[tuple[Chunk, str]]:
    """Chunks of a plane in the order of the file, tables first, with their streams' names."""
    for stream in plane.streams:
        if stream.table is not None:
            yield stream.table, stream.name
    for index in range(len(plane.streams[0].chunks)):
        for stream in plane.streams:
            yield stream.chunks[index], stream.name


def _place(chunk: Chunk, cursor: int, where: str, data_end: int) -> int:
    if chunk.offset != cursor:
        kind = "overlaps the one before it" if chunk.offset < cursor else "leaves a hole"
        raise BundleFormatError(
            f"a chunk of {where} at offset {chunk.offset} {kind}; expected offset {cursor}"
        )
    end = chunk.offset + chunk.stored_bytes
    if end > data_end:
        raise BundleFormatError(
            f"a chunk of {where} ends at {end}, beyond the manifest at {data_end}"
        )
    return end
