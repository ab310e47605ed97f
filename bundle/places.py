"""What stands where in a file: every chunk in order, with the tensors and groups it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tersor.bundle.decoding import describe_chunk, describe_table
from tersor.bundle.manifest import Chunk, Manifest, Plane, Stream
from tersor.bundle.validate import PlaneKey, plane_chunks, plane_key, stored_planes


class Owners:
    """Who uses a plane, and who becomes resident with it."""

    def __init__(self, manifest: Manifest) -> None:
        self._groups = {name: group.name for group in manifest.groups for name in group.tensors}
        self._tensors: dict[PlaneKey, dict[str, None]] = {}
        for tensor in manifest.tensors:
            for plane in tensor.planes:
                self._tensors.setdefault(plane_key(plane), {})[tensor.name] = None

    def tensors(self, *planes: Plane) -> tuple[str, ...]:
        """All tensors that use one of some planes, each once."""
        return tuple(
            dict.fromkeys(name for plane in planes for name in self._tensors[plane_key(plane)])
        )

    def groups(self, tensors: Iterable[str]) -> tuple[str, ...]:
        """The groups that tensors are in, each once."""
        return tuple(dict.fromkeys(self._groups[name] for name in tensors))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One chunk at rest, and what it is a part of: a stream of a plane, or an asset."""

    chunk: Chunk
    name: str  # as messages call it; of its first use, if it is shared
    tensors: tuple[str, ...] = ()  # of all uses
    groups: tuple[str, ...] = ()
    plane: str | None = None
    stream: str | None = None
    index: int | None = None  # of the chunk in its stream; None for a table
    asset: str | None = None

    @property
    def kind(self) -> str:
        """As damage calls it."""
        if self.asset is not None:
            return "asset"
        return "table" if self.index is None else "chunk"

    @property
    def end(self) -> int:
        """Where in the file the chunk ends."""
        return self.chunk.offset + self.chunk.stored_bytes


def places(manifest: Manifest) -> Iterator[Place]:
    """Every chunk at rest once, in the order of the file."""
    owners = Owners(manifest)
    users: dict[int, list[Plane]] = {}  # by offset
    for plane in stored_planes(manifest):
        for used, _ in plane_chunks(plane):
            known = users.setdefault(used.offset, [])
            if not known or known[-1] is not plane:
                known.append(plane)
    for plane in stored_planes(manifest):
        of_plane = owners.tensors(plane)
        for stream, index in _in_order(plane):
            chunk = stream.table if index is None else stream.chunks[index]
            assert chunk is not None
            planes = users.pop(chunk.offset, None)
            if planes is None:  # stood before
                continue
            tensors = of_plane if planes == [plane] else owners.tensors(*planes)
            yield Place(
                chunk=chunk,
                name=describe_table(plane, stream)
                if index is None
                else describe_chunk(plane, stream, index),
                tensors=tensors,
                groups=owners.groups(tensors),
                plane=plane.name,
                stream=stream.name,
                index=index,
            )
    for asset in manifest.assets:
        yield Place(chunk=asset.chunk, name=f"asset {asset.name!r}", asset=asset.name)


def _in_order(plane: Plane) -> Iterator[tuple[Stream, int | None]]:
    """The streams whose table, or whose chunk of an index, follow each other in the file."""
    for stream in plane.streams:
        if stream.table is not None:
            yield stream, None
    for index in range(len(plane.streams[0].chunks)):
        for stream in plane.streams:
            yield stream, index
