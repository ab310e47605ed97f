"""What a bundle holds, as frozen metadata: tensors, planes, streams, chunks, groups and assets.

A tensor is resident in a *layout* made of *planes*. A plane at rest is a row-major array of
symbols; its *filter* splits every row block into byte *streams* (for floats: exponents apart from
sign and mantissa), and each stream's block is one *chunk* with its own codec and checksum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tersor.bundle.program import Program

JsonScalar = str | int | float | bool | None

# Plane and tensor dtypes: name -> bytes per symbol as read into memory. `u4` is one symbol per byte
# in memory (0..15); how it is packed at rest is its filter's business.
DTYPES: Mapping[str, int] = {
    "bool": 1, "u4": 1, "u8": 1, "i8": 1, "f8_e4m3": 1, "f8_e5m2": 1,
    "u16": 2, "i16": 2, "f16": 2, "bf16": 2,
    "u32": 4, "i32": 4, "f32": 4,
    "u64": 8, "i64": 8, "f64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The independently readable, checksummed and decodable piece of an encoded stream."""

    offset: int  # bytes from the start of the file
    stored_bytes: int
    raw_bytes: int  # after decoding
    checksum: int  # xxh3-64 of the stored bytes
    codec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One byte stream of a filtered plane; chunk i of every stream covers the same rows."""

    name: str
    chunks: tuple[Chunk, ...]
    table: Chunk | None = None  # what the chunks' codec needs for all of them
    # Summed once, not at each question: many tensors may share a plane of many chunks.
    stored_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        total = sum(chunk.stored_bytes for chunk in self.chunks)
        total += self.table.stored_bytes if self.table else 0
        object.__setattr__(self, "stored_bytes", total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One typed array of a layout."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    filter: str
    rows_per_chunk: int  # rows (first dimension; 1 row for a scalar) in every chunk but the last
    streams: tuple[Stream, ...]
    digest: str  # BLAKE3 hex of the raw plane: verifies it whole and finds duplicates

    @property
    def raw_bytes(self) -> int:
        """Size in memory after decoding."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count * DTYPES[self.dtype]

    @property
    def stored_bytes(self) -> int:
        """Size at rest."""
        return sum(stream.stored_bytes for stream in self.streams)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSlice:
    """Provenance: the next `rows` rows of a bundle tensor are source tensor `tensor`, whole."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    rows: int  # rows of the bundle tensor this source covers, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A logical weight: shape and dtype, the layout it is computed in, where it came from."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    params: Mapping[str, JsonScalar] = field(default_factory=dict)
    planes: tuple[Plane, ...]
    sources: tuple[SourceSlice, ...] = ()
    aliases: tuple[str, ...] = ()  # further source names with the very same bytes (tied weights)

    def plane(self, name: str) -> Plane:
        """The plane called `name`; KeyError if the layout has none."""
        for plane in self.planes:
            if plane.name == name:
                return plane
        raise KeyError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tensors that become resident together; groups stand in execution order."""

    name: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A small file carried along: tokenizer, graph, configuration, licence."""

    name: str
    media_type: str
    chunk: Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Where the parity section begins, and how the bytes outside it are cut into stripes."""

    offset: int  # of the section, which ends where the manifest begins
    block_bytes: int
    data_blocks: int  # of a stripe
    parity_blocks: int  # of a stripe: how many of its blocks may be damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a reader needs to know before it reads a single weight."""

    program: Program
    tensors: tuple[TensorEntry, ...]
    groups: tuple[Group, ...]
    assets: tuple[Asset, ...]
    recipe: Mapping[str, Any]  # JSON: the recipe as applied
    source: Mapping[str, Any]  # JSON: format, architecture, digest of the source
    certificate: Mapping[str, Any] | None  # JSON: the measured cost of the recipe
    producer: str  # "tersor 0.1.0"
    digest: str  # BLAKE3 hex over all plane digests and assets, in order
    parity: Parity | None = None

    def tensor(self, name: str) -> TensorEntry:
        """The tensor called `name`; KeyError if there is none."""
        for entry in self.tensors:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def group(self, name: str) -> Group:
        """The group called `name`; KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)
