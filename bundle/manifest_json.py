"""The manifest as JSON and back; `manifest.schema.json` describes the same structure.

Planes stand in a table of their own and tensors point into it, so that a repeated plane (tied or
equal weights) is one entry that two tensors share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tersor.bundle import limits
from tersor.bundle.codecs import CODEC_NAMES
from tersor.bundle.errors import BundleFormatError, BundleLimitError
from tersor.bundle.filters import FILTERS
from tersor.bundle.json_fields import Fields, as_hex, as_text
from tersor.bundle.manifest import (
    DTYPES,
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
from tersor.bundle.parity_json import parity_from_json, parity_to_json
from tersor.bundle.program_json import program_from_json, program_to_json
from tersor.bundle.strict_json import check_free, dumps, loads
from tersor.bundle.validate import PlaneKey, check_tensor, plane_key, validate

_MAX_PLANES = limits.MAX_TENSORS * limits.MAX_PLANES_PER_TENSOR
_DTYPE_NAMES = tuple(DTYPES)
_FILTER_NAMES = tuple(FILTERS)
_CHUNK_KEYS = frozenset({"offset", "stored_bytes", "raw_bytes", "checksum", "codec"})
_CODECS = frozenset(CODEC_NAMES)
_CHECKSUM = re.compile("[0-9a-f]{16}")


def manifest_to_json(manifest: Manifest) -> bytes:
    """The manifest's JSON text; the same manifest gives the same bytes."""
    table: dict[PlaneKey, int] = {}
    planes: list[dict[str, Any]] = []
    tensors = []
    for tensor in manifest.tensors:
        references = []
        for plane in tensor.planes:
            key = plane_key(plane)
            if key not in table:
                table[key] = len(planes)
                planes.append(_plane_to_json(plane))
            references.append({"name": plane.name, "plane": table[key]})
        tensors.append(_tensor_to_json(tensor, references))
    optional = {} if manifest.parity is None else {"parity": parity_to_json(manifest.parity)}
    return dumps(
        {
            "producer": manifest.producer,
            "program": program_to_json(manifest.program),
            "planes": planes,
            "tensors": tensors,
            "groups": [{"name": g.name, "tensors": list(g.tensors)} for g in manifest.groups],
            "assets": [
                {
                    "name": asset.name,
                    "media_type": asset.media_type,
                    "chunk": _chunk_to_json(asset.chunk),
                }
                for asset in manifest.assets
            ],
            "recipe": dict(manifest.recipe),
            "source": dict(manifest.source),
            "certificate": None if manifest.certificate is None else dict(manifest.certificate),
            "digest": manifest.digest,
            **optional,
        }
    )


def manifest_from_json(text: bytes, *, data_end: int) -> Manifest:
    """Parses and validates a manifest; `data_end` is its own offset.

    Chunk data ends there, or where the parity section begins.

    Raises:
        BundleFormatError: anything that format version 2 does not allow.
        BundleLimitError: a declared size exceeds a cap of `limits`.
    """
    fields = Fields(loads(text, what="the manifest"), "the manifest")
    table = [
        _plane_from_json(item, f"plane {index}")
        for index, item in enumerate(fields.items("planes", _MAX_PLANES))
    ]
    _check_distinct(table)
    used = _UseOrder(len(table))
    certificate = fields.take("certificate")
    manifest = Manifest(
        producer=fields.name("producer"),
        program=program_from_json(fields.take("program")),
        tensors=tuple(
            _tensor_from_json(item, f"tensor {index}", table, used)
            for index, item in enumerate(fields.items("tensors", limits.MAX_TENSORS))
        ),
        groups=tuple(_group_from_json(item) for item in fields.items("groups", limits.MAX_GROUPS)),
        assets=tuple(_asset_from_json(item) for item in fields.items("assets", limits.MAX_ASSETS)),
        recipe=_free(fields.take("recipe"), "recipe"),
        source=_free(fields.take("source"), "source"),
        certificate=None if certificate is None else _free(certificate, "certificate"),
        digest=fields.digest("digest"),
        parity=parity_from_json(fields),
    )
    fields.finish()
    used.finish()
    validate(manifest, data_end=data_end)
    return manifest


def _check_distinct(table: list[Plane]) -> None:
    """Equal planes are one entry: sharing is exact, and never a partial overlap of chunks."""
    seen: dict[PlaneKey, int] = {}
    for index, plane in enumerate(table):
        first = seen.setdefault(plane_key(plane), index)
        if first != index:
            raise BundleFormatError(
                f"plane {index} repeats the digest, dtype and shape of plane {first}; equal planes "
                "are stored once"
            )


def checked_tensor(tensor: TensorEntry) -> TensorEntry:
    """A tensor as a reader will see it, whatever its planes.

    Raises:
        BundleFormatError: a reader would refuse it.
        BundleLimitError: it exceeds a cap of `limits`.
    """
    references = [{"name": plane.name, "plane": at} for at, plane in enumerate(tensor.planes)]
    value = loads(dumps(_tensor_to_json(tensor, references)), what="the tensor's entry")
    table = list(tensor.planes)
    result = _tensor_from_json(value, "the tensor", table, _UseOrder(len(table)))
    check_tensor(result)
    return result


class _UseOrder:
    """Holds the plane table to the order in which tensors first use it, with nothing left over.

    One order for the table, the file and the execution; and no bytes that nothing refers to.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._next = 0

    def use(self, index: int, name: str, tensor: str) -> None:
        if index > self._next:
            raise BundleFormatError(
                f"plane {name!r} of {tensor} uses plane {index} before plane {self._next}; planes "
                "stand in the order of their first use"
            )
        self._next = max(self._next, index + 1)

    def finish(self) -> None:
        if self._next != self._count:
            raise BundleFormatError(f"plane {self._next} belongs to no tensor")


def _plane_to_json(plane: Plane) -> dict[str, Any]:
    return {
        "dtype": plane.dtype,
        "shape": list(plane.shape),
        "filter": plane.filter,
        "rows_per_chunk": plane.rows_per_chunk,
        "digest": plane.digest,
        "streams": [_stream_to_json(stream) for stream in plane.streams],
    }


def _stream_to_json(stream: Stream) -> dict[str, Any]:
    value: dict[str, Any] = {"name": stream.name}
    if stream.table is not None:
        value["table"] = _chunk_to_json(stream.table)
    value["chunks"] = [_chunk_to_json(chunk) for chunk in stream.chunks]
    return value


def _plane_from_json(value: object, where: str) -> Plane:
    fields = Fields(value, where)
    plane = Plane(
        name="",  # given by each tensor that uses it
        dtype=fields.choice("dtype", _DTYPE_NAMES),
        shape=fields.shape("shape"),
        filter=fields.choice("filter", _FILTER_NAMES),
        rows_per_chunk=fields.integer("rows_per_chunk", 1, limits.MAX_DIMENSION),
        digest=fields.digest("digest"),
        streams=tuple(
            _stream_from_json(item, where)
            for item in fields.items("streams", limits.MAX_STREAMS_PER_PLANE)
        ),
    )
    fields.finish()
    return plane


def _stream_from_json(value: object, plane: str) -> Stream:
    fields = Fields(value, f"a stream of {plane}")
    name = fields.name("name")
    where = f"a chunk of stream {name!r} of {plane}"
    chunks = tuple(
        _chunk_from_json(item, where)
        for item in fields.items("chunks", limits.MAX_CHUNKS_PER_STREAM)
    )
    table = fields.take("table") if fields.has("table") else None
    fields.finish()
    return Stream(
        name=name,
        chunks=chunks,
        table=None if table is None else _chunk_from_json(table, f"the table of {where}"),
    )


def _chunk_to_json(chunk: Chunk) -> dict[str, Any]:
    return {
        "offset": chunk.offset,
        "stored_bytes": chunk.stored_bytes,
        "raw_bytes": chunk.raw_bytes,
        # Hexadecimal: many JSON readers keep integers only up to 2^53.
        "checksum": f"{chunk.checksum:016x}",
        "codec": chunk.codec,
    }


def _chunk_from_json(value: object, where: str) -> Chunk:
    # There are hundreds of thousands of these: valid ones take no detour through Fields.
    if (
        type(value) is dict
        and value.keys() == _CHUNK_KEYS
        and type(offset := value["offset"]) is int
        and 0 <= offset <= limits.MAX_FILE_BYTES
        and type(stored_bytes := value["stored_bytes"]) is int
        and 1 <= stored_bytes <= limits.MAX_FILE_BYTES
        and type(raw_bytes := value["raw_bytes"]) is int
        and 1 <= raw_bytes <= limits.MAX_BLOCK_RAW_BYTES
        and type(checksum := value["checksum"]) is str
        and _CHECKSUM.fullmatch(checksum)
        and type(codec := value["codec"]) is str
        and codec in _CODECS
    ):
        return Chunk(
            offset=offset,
            stored_bytes=stored_bytes,
            raw_bytes=raw_bytes,
            checksum=int(checksum, 16),
            codec=codec,
        )
    raise _bad_chunk(value, where)


def _bad_chunk(value: object, where: str) -> BundleFormatError:
    """What is wrong with a chunk that is not valid."""
    try:
        fields = Fields(value, where)
        fields.integer("offset", 0, limits.MAX_FILE_BYTES)
        fields.integer("stored_bytes", 1, limits.MAX_FILE_BYTES)
        fields.integer("raw_bytes", 1, limits.MAX_BLOCK_RAW_BYTES)
        as_hex(fields.take("checksum"), f"checksum of {where}", 16)
        fields.choice("codec", CODEC_NAMES)
        fields.finish()
    except BundleFormatError as error:
        return error
    raise AssertionError(f"{where} is valid after all")


def _tensor_to_json(tensor: TensorEntry, planes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "layout": tensor.layout,
        "params": dict(tensor.params),
        "planes": planes,
        "sources": [
            {
                "tensor": source.tensor,
                "dtype": source.dtype,
                "shape": list(source.shape),
                "rows": source.rows,
            }
            for source in tensor.sources
        ],
        "aliases": list(tensor.aliases),
    }


def _tensor_from_json(
    value: object, where: str, table: list[Plane], used: _UseOrder
) -> TensorEntry:
    fields = Fields(value, where)
    name = fields.name("name")
    fields.where = f"tensor {name!r}"
    tensor = TensorEntry(
        name=name,
        shape=fields.shape("shape"),
        dtype=fields.choice("dtype", _DTYPE_NAMES),
        layout=fields.name("layout"),
        params=_params(fields.take("params"), f"params of {fields.where}"),
        planes=tuple(
            _plane_of_tensor(item, fields.where, table, used)
            for item in fields.items("planes", limits.MAX_PLANES_PER_TENSOR)
        ),
        sources=tuple(
            _source_from_json(item, fields.where)
            for item in fields.items("sources", limits.MAX_SOURCES_PER_TENSOR)
        ),
        aliases=fields.names("aliases", limits.MAX_ALIASES_PER_TENSOR),
    )
    fields.finish()
    return tensor


def _plane_of_tensor(value: object, tensor: str, table: list[Plane], used: _UseOrder) -> Plane:
    fields = Fields(value, f"a plane of {tensor}")
    name = fields.name("name")
    index = fields.integer("plane", 0, _MAX_PLANES)
    fields.finish()
    if index >= len(table):
        raise BundleFormatError(
            f"plane {name!r} of {tensor} is number {index}, but there are {len(table)} planes"
        )
    used.use(index, name, tensor)
    return replace(table[index], name=name)


def _source_from_json(value: object, tensor: str) -> SourceSlice:
    fields = Fields(value, f"a source of {tensor}")
    source = SourceSlice(
        tensor=fields.name("tensor"),
        dtype=fields.choice("dtype", _DTYPE_NAMES),
        shape=fields.shape("shape"),
        rows=fields.integer("rows", 0, limits.MAX_DIMENSION),
    )
    fields.finish()
    return source


def _params(value: object, where: str) -> Mapping[str, JsonScalar]:
    if not isinstance(value, dict):
        raise BundleFormatError(f"{where} is not an object")
    if len(value) > limits.MAX_PARAMS_PER_TENSOR:
        raise BundleLimitError(
            f"{where} has {len(value)} entries; this build reads at most "
            f"{limits.MAX_PARAMS_PER_TENSOR}"
        )
    for key, item in value.items():
        as_text(key, where, max_bytes=limits.MAX_NAME_BYTES)
        if isinstance(item, dict | list):
            raise BundleFormatError(f"{key} of {where} is not a number, string, boolean or null")
    check_free(value, where)
    return value


def _group_from_json(value: object) -> Group:
    fields = Fields(value, "a group")
    name = fields.name("name")
    fields.where = f"group {name!r}"
    group = Group(name=name, tensors=fields.names("tensors", limits.MAX_TENSORS))
    fields.finish()
    return group


def _asset_from_json(value: object) -> Asset:
    fields = Fields(value, "an asset")
    name = fields.name("name")
    fields.where = f"asset {name!r}"
    asset = Asset(
        name=name,
        media_type=fields.name("media_type"),
        chunk=_chunk_from_json(fields.take("chunk"), f"the chunk of {fields.where}"),
    )
    fields.finish()
    return asset


def _free(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BundleFormatError(f"{where} of the manifest is not an object")
    check_free(value, f"{where} of the manifest")
    return value
