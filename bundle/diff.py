"""What two bundles have in common, known from their manifests alone: no weight is read.

Planes are compared by their digests, so equal weights are found whatever codec holds them. Chunks
are compared as they are stored: those are the bytes that whoever has one file need not fetch for
the other. A chunk's checksum has 64 bits, which tells chunks apart that differ by chance; a
manifest that lies about its checksums can make this report wrong, and nothing else: reading
verifies every chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tersor.bundle.manifest import Asset, Chunk, Manifest, Parity, Plane, TensorEntry
from tersor.bundle.program_json import program_to_json
from tersor.bundle.reader import BundleReader
from tersor.bundle.validate import plane_key, stored_planes

ChunkKey = tuple[int, int, int, str]
Named = TypeVar("Named", TensorEntry, Asset)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """One of the two bundles."""

    bundle: str
    file_bytes: int
    format_version: int
    digest: str  # of the content, whatever the codecs
    tensors: int
    planes: int  # at rest: equal ones once
    chunks: int  # at rest, tables and assets included


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What of one file is in the other, too."""

    count: int
    stored_bytes: int  # of this file
    share: float  # stored_bytes of the file's bytes, 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What both have in common, measured in each: counts and bytes differ with the packing."""

    a: Overlap
    b: Overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field that differs; None where one does not have it."""

    field: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A tensor or an asset that both have, and what differs."""

    name: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDiff:
    """Tensors or assets, compared by name; each list in the order of its file."""

    equal: tuple[str, ...]
    changed: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDiff:
    """The whole comparison."""

    a: BundleFacts
    b: BundleFacts
    same_content: bool  # the content digests are equal
    planes: Shared  # equal digest, dtype and shape
    chunks: Shared  # equal stored bytes
    tensors: NamedDiff
    assets: NamedDiff
    fields: tuple[Difference, ...]  # format_version, producer, parity, program, …


def diff(a: BundleReader, b: BundleReader) -> BundleDiff:
    """Compares two open bundles; reads their headers and nothing else."""
    facts = _facts(a), _facts(b)
    planes = [set(map(plane_key, stored_planes(each.manifest))) for each in (a, b)]
    chunks = [{_chunk_key(chunk) for chunk in _placed(each.manifest)} for each in (a, b)]
    common_planes = planes[0] & planes[1]
    common_chunks = chunks[0] & chunks[1]
    return BundleDiff(
        a=facts[0],
        b=facts[1],
        same_content=a.manifest.digest == b.manifest.digest,
        planes=Shared(
            a=_shared_planes(a, lambda plane: plane_key(plane) in common_planes),
            b=_shared_planes(b, lambda plane: plane_key(plane) in common_planes),
        ),
        chunks=Shared(
            a=_shared_chunks(a, common_chunks),
            b=_shared_chunks(b, common_chunks),
        ),
        tensors=_by_name(a.manifest.tensors, b.manifest.tensors, _tensor_fields),
        assets=_by_name(a.manifest.assets, b.manifest.assets, _asset_fields),
        fields=tuple(
            _differences("", _manifest_fields(a, facts[0]), _manifest_fields(b, facts[1]))
        ),
    )


def _facts(reader: BundleReader) -> BundleFacts:
    manifest = reader.manifest
    return BundleFacts(
        bundle=reader.name,
        file_bytes=reader.file_bytes,
        format_version=reader.read_format_version(),
        digest=manifest.digest,
        tensors=len(manifest.tensors),
        planes=sum(1 for _ in stored_planes(manifest)),
        chunks=len(_placed(manifest)),
    )


def _chunk_key(chunk: Chunk) -> ChunkKey:
    return (chunk.checksum, chunk.stored_bytes, chunk.raw_bytes, chunk.codec)


def _placed(manifest: Manifest) -> list[Chunk]:
    """Every chunk at rest once, tables and assets included."""
    return [*_of_planes(stored_planes(manifest)), *(asset.chunk for asset in manifest.assets)]


def _of_planes(planes: Iterable[Plane]) -> list[Chunk]:
    """The chunks of planes, each place in the file once."""
    chunks: dict[int, Chunk] = {}
    for plane in planes:
        for stream in plane.streams:
            for chunk in (stream.table, *stream.chunks):
                if chunk is not None:
                    chunks[chunk.offset] = chunk
    return list(chunks.values())


def _shared_planes(reader: BundleReader, is_common: Callable[[Plane], bool]) -> Overlap:
    common = [plane for plane in stored_planes(reader.manifest) if is_common(plane)]
    return _overlap(reader, len(common), _of_planes(common))


def _shared_chunks(reader: BundleReader, common: set[ChunkKey]) -> Overlap:
    chunks = [chunk for chunk in _placed(reader.manifest) if _chunk_key(chunk) in common]
    return _overlap(reader, len(chunks), chunks)


def _overlap(reader: BundleReader, count: int, chunks: list[Chunk]) -> Overlap:
    stored = sum(chunk.stored_bytes for chunk in chunks)
    return Overlap(count=count, stored_bytes=stored, share=stored / reader.file_bytes)


def _by_name(
    a: tuple[Named, ...], b: tuple[Named, ...], fields: Callable[[Named], Mapping[str, Any]]
) -> NamedDiff:
    others = {each.name: each for each in b}
    equal: list[str] = []
    changed: list[Change] = []
    for each in a:
        if each.name not in others:
            continue
        found = tuple(_differences("", fields(each), fields(others[each.name])))
        if found:
            changed.append(Change(name=each.name, differences=found))
        else:
            equal.append(each.name)
    names = {each.name for each in a}
    return NamedDiff(
        equal=tuple(equal),
        changed=tuple(changed),
        only_a=tuple(each.name for each in a if each.name not in others),
        only_b=tuple(each.name for each in b if each.name not in names),
    )


def _tensor_fields(tensor: TensorEntry) -> Mapping[str, Any]:
    """What a tensor is once it is resident: its codecs and its chunks do not matter."""
    return {
        "shape": tensor.shape,
        "dtype": tensor.dtype,
        "layout": tensor.layout,
        "params": tensor.params,
        "planes": {
            plane.name: f"{plane.dtype} {list(plane.shape)} {plane.digest}"
            for plane in tensor.planes
        },
    }


def _asset_fields(asset: Asset) -> Mapping[str, Any]:
    """As stored: a manifest has no digest of a single asset's content."""
    return {
        "media_type": asset.media_type,
        "raw_bytes": asset.chunk.raw_bytes,
        "stored_bytes": asset.chunk.stored_bytes,
        "codec": asset.chunk.codec,
        "checksum": f"{asset.chunk.checksum:016x}",
    }


def _manifest_fields(reader: BundleReader, facts: BundleFacts) -> Mapping[str, Any]:
    manifest = reader.manifest
    return {
        "format_version": facts.format_version,
        "producer": manifest.producer,
        "parity": _parity_fields(manifest.parity),
        "program": program_to_json(manifest.program),
        "recipe": manifest.recipe,
        "source": manifest.source,
    }


def _parity_fields(parity: Parity | None) -> Mapping[str, Any] | None:
    """Where the section begins follows from what stands before it."""
    if parity is None:
        return None
    return {
        "block_bytes": parity.block_bytes,
        "data_blocks": parity.data_blocks,
        "parity_blocks": parity.parity_blocks,
    }


def _differences(field: str, a: Any, b: Any) -> Iterator[Difference]:
    """The smallest fields of two JSON values that differ; nesting is bounded by the format."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:  # in the order of A, then what only B has
            inner = f"{field}.{key}" if field else str(key)
            yield from _differences(inner, a.get(key), b.get(key))
    elif _is_list(a) and _is_list(b) and len(a) == len(b) and not _flat(a, b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _differences(f"{field}[{index}]", one, other)
    elif type(a) is not type(b) or a != b:  # true is not 1
        yield Difference(field=field, a=a, b=b)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _flat(a: Any, b: Any) -> bool:
    """A shape or a list of names is told whole."""
    return not any(isinstance(item, Mapping) or _is_list(item) for item in (*a, *b))
