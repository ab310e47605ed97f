"""What stands where in a file: every chunk in order, with the tensors and groups it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tersor.bundle.decoding import describe_chunk
from tersor.bundle.manifest import Chunk, Manifest, Plane
from tersor.bundle.validate import PlaneKey, plane_key, stored_planes


class Owners:
    """Who uses a plane, and who becomes resident with it."""

    def __init__(self, manifest: Manifest) -> None:
        self._groups = {name: group.name for group in manifest.groups for name in group.tensors}
        self._tensors: dict[PlaneKey, dict[str, None]] = {}
        for tensor in manifest.tensors:
            for plane in tensor.planes:
                self._tensors.setdefault(plane_key(plane), {})[tensor.name] = None

    def tensors(self, plane: Plane) -> tuple[str, ...]:
        """All tensors that use a plane, in the manifest's order."""
        return tuple(self._tensors[plane_key(plane)])

    def groups(self, tensors: Iterable[str]) -> tuple[str, ...]:
        """The groups that tensors are in, each once."""
        return tuple(dict.fromkeys(self._groups[name] for name in tensors))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One chunk, and what it is a part of: a stream of a plane, or an asset."""

    chunk: Chunk
    name: str  # as messages call it
    tensors: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    plane: str | None = None
    stream: str | None = None
    index: int | None = None  # of the chunk in its stream
    asset: str | None = None

    @property
    def end(self) -> int:
        """Where in the file the chunk ends."""
        return self.chunk.offset + self.chunk.stored_bytes


def places(manifest: Manifest) -> Iterator[Place]:
    """Every chunk in the order of the file."""
    owners = Owners(manifest)
    for plane in stored_planes(manifest):
        tensors = owners.tensors(plane)
        groups = owners.groups(tensors)
        for index in range(len(plane.streams[0].chunks)):
            for stream in plane.streams:
                yield Place(
                    chunk=stream.chunks[index],
                    name=describe_chunk(plane, stream, index),
                    tensors=tensors,
                    groups=groups,
                    plane=plane.name,
                    stream=stream.name,
                    index=index,
                )
    for asset in manifest.assets:
        yield Place(chunk=asset.chunk, name=f"asset {asset.name!r}", asset=asset.name)
