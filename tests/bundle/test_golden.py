"""Golden files: every version stays readable for ever, and the writer's bytes do not drift."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
import zstandard
from golden_bundles import KINDS, content_of, write_golden
from tiny_bundles import manifest_text, read_all, weights, write_tiny

from tersor import bundle as package
from tersor.bundle import limits
from tersor.bundle.codecs import CODEC_NAMES
from tersor.bundle.codecs.entropy.layout import BLOCK_SYMBOLS, ChunkHeader, Sections
from tersor.bundle.filters import FILTERS
from tersor.bundle.manifest import DTYPES
from tersor.bundle.reader import BundleReader
from tersor.bundle.validate import stored_planes
from tersor.bundle.verify import verify

GOLDEN = Path(__file__).resolve().parent / "golden"
CODECS = ["raw", "lz4", "auto"]
# sha256 over the decoded content, by name: what every later version must still read.
CONTENT = "e6b4d841490a8cd00859b7479a31bf3409efd441571829124c9f09fa8e3d740d"

CONTENT_2 = {
    "small": "d46cd56d7d9b8d037a6cbfc2d2b7a654ea716ace838a061b3ce453c26b3b828a",
    "classed": "b6d782a0b6114a856fb00b38a4f1a30b9ef38c80e2d9b31670dde4ccebf84731",
    "blocks": "b7bfe6a6ddf368b59e6f4e0f142c567b520a2953a4ff7f05668d1002e8f6bbf8",
    "dtypes": "e0c28dbd55fc9ab754bfce5871d4b5fe01e102f5509bd0a8b7b7590790eab10c",
}


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(read_all(path).items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


@pytest.mark.parametrize("codec", CODECS)
def test_golden_files_read_as_they_were_written(codec: str) -> None:
    path = GOLDEN / f"v1-{codec}.tersor"
    assert verify(path).ok
    assert _content_hash(path) == CONTENT


def test_golden_files_of_version_1_use_every_codec_and_filter_it_had() -> None:
    used: set[str] = set()
    for codec in CODECS:
        with BundleReader.open(GOLDEN / f"v1-{codec}.tersor") as reader:
            for plane in stored_planes(reader.manifest):
                used.add(plane.filter)
                used |= {chunk.codec for stream in plane.streams for chunk in stream.chunks}
    assert used == {"none", "nibbles", "float_split", "raw", "lz4", "zstd"}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_files_of_version_2_read_as_they_were_written(kind: str) -> None:
    path = GOLDEN / f"v2-{kind}.tersor"
    assert verify(path).ok
    assert _content_hash(path) == CONTENT_2[content_of(kind)]


def test_golden_files_of_version_2_use_every_part_of_the_format() -> None:
    used: set[str] = set()
    for kind in KINDS:
        with BundleReader.open(GOLDEN / f"v2-{kind}.tersor") as reader:
            for plane in stored_planes(reader.manifest):
                used.add(plane.filter)
                for stream in plane.streams:
                    used |= {chunk.codec for chunk in stream.chunks}
                    used |= {"table"} if stream.table else set()
                    offsets = [chunk.offset for chunk in stream.chunks]
                    used |= {"shared"} if len(set(offsets)) < len(offsets) else set()
    assert used == {*FILTERS, *CODEC_NAMES, "table", "shared"}


def test_the_number_of_a_version_is_no_rule_for_new_readers(tmp_path: Path) -> None:
    data = bytearray((GOLDEN / "v2-rans.tersor").read_bytes())
    data[8] = data[-16] = 1
    path = tmp_path / "numbered-1.tersor"
    path.write_bytes(data)
    assert verify(path).ok
    assert _content_hash(path) == CONTENT_2["small"]


def test_golden_files_have_every_dtype_apart_and_as_it_is() -> None:
    used: set[tuple[str, str]] = set()
    for kind in KINDS:
        with BundleReader.open(GOLDEN / f"v2-{kind}.tersor") as reader:
            used |= {(plane.dtype, plane.filter) for plane in stored_planes(reader.manifest)}
    assert {dtype for dtype, _ in used} == set(DTYPES)
    assert {(dtype, "float_split") for dtype in ("f16", "bf16", "f32", "f64")} <= used
    assert {(dtype, "row_exponent") for dtype in ("bf16", "f32")} <= used
    assert {(dtype, "f8_split") for dtype in ("f8_e4m3", "f8_e5m2")} <= used
    assert {(dtype, "bit_planes") for dtype in ("bool", "u4", "u8", "i8")} <= used


@pytest.mark.parametrize("codec", ["huffman", "rans"])
def test_golden_files_have_chunks_of_several_blocks_with_patches(codec: str) -> None:
    """Of both widths, with their own models."""
    path = GOLDEN / f"v2-blocks-{codec}.tersor"
    data = path.read_bytes()
    found = set()
    with BundleReader.open(path) as reader:
        for plane in stored_planes(reader.manifest):
            chunk = plane.streams[0].chunks[0]
            if chunk.codec != codec:
                continue
            sections = Sections(
                np.frombuffer(data, np.uint8, chunk.stored_bytes, chunk.offset), codec
            )
            header = ChunkHeader.unpack(sections)
            symbols = chunk.raw_bytes // header.symbol_bytes
            assert header.model_bytes
            if symbols > BLOCK_SYMBOLS and symbols % BLOCK_SYMBOLS and header.patches:
                found.add(header.symbol_bytes)
    assert found == {1, 2}


@pytest.mark.parametrize("kind", KINDS)
def test_the_writer_still_writes_the_golden_bytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "v2.tersor"
    write_golden(path, kind)
    golden = GOLDEN / f"v2-{kind}.tersor"
    if zstandard.ZSTD_VERSION == (1, 5, 7):
        assert path.read_bytes() == golden.read_bytes()
    # What zstd makes of tables, assets and the manifest is its version's business; ours is ours.
    assert _own_chunks(path) == _own_chunks(golden)


def _own_chunks(path: Path) -> list[bytes]:
    """Stored bytes of the chunks whose codecs are our own."""
    data = path.read_bytes()
    with BundleReader.open(path) as reader:
        return [
            data[chunk.offset : chunk.offset + chunk.stored_bytes]
            for plane in stored_planes(reader.manifest)
            for stream in plane.streams
            for chunk in stream.chunks
            if chunk.codec in {"raw", "lz78", "lzw", "huffman", "rans"}
        ]


def test_the_frame_of_the_file_byte_by_byte() -> None:
    """Against the specification's numbers, not against our own constants."""
    data = (GOLDEN / "v1-auto.tersor").read_bytes()
    assert data[:16] == b"\x89TSR\r\n\x1a\n" + struct.pack("<II", 1, 0)
    assert data[16:64] == bytes(48)
    offset, stored, raw, size = struct.unpack("<QQQQ", data[-80:-48])
    assert size == len(data)
    assert offset + stored + 80 == size
    assert data[-16:] == struct.pack("<II", 1, 0) + b"TSREND\r\n"
    text = zstandard.ZstdDecompressor().decompress(data[offset : offset + stored])
    assert len(text) == raw
    manifest = json.loads(text)
    assert data[64:4096] == bytes(4032)
    # bf16 bits s eeeeeeee mmmmmmm: the exponents are a stream of their own, compressed.
    plane = manifest["planes"][0]
    assert plane["filter"] == "float_split"
    (exponent,), (mantissa,) = (stream["chunks"] for stream in plane["streams"])
    assert (exponent["offset"], exponent["codec"], mantissa["codec"]) == (4096, "zstd", "raw")
    end = 4096 + exponent["stored_bytes"]
    assert mantissa["offset"] == end
    bits = weights((8, 16)).reshape(-1)
    assert zstandard.ZstdDecompressor().decompress(data[4096:end]) == (
        ((bits >> 7) & 0xFF).astype(np.uint8).tobytes()
    )
    assert data[end : end + 128] == ((bits << 1) | (bits >> 15)).astype(np.uint8).tobytes()


def test_manifests_follow_the_published_schema(tmp_path: Path) -> None:
    schema = json.loads((_package_folder() / "manifest.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    path = tmp_path / "x.tersor"
    write_tiny(path)
    for bundle in (*sorted(GOLDEN.glob("*.tersor")), path):
        value = json.loads(manifest_text(bundle.read_bytes())[0])
        assert list(validator.iter_errors(value)) == []
        value["planes"][0]["surprise"] = 1
        assert list(validator.iter_errors(value)) != []
    assert schema["$defs"]["dtype"]["enum"] == list(DTYPES)
    fields, parts = schema["properties"], schema["$defs"]
    for field, cap in {
        "planes": limits.MAX_TENSORS * limits.MAX_PLANES_PER_TENSOR,
        "tensors": limits.MAX_TENSORS,
        "groups": limits.MAX_GROUPS,
        "assets": limits.MAX_ASSETS,
    }.items():
        assert fields[field]["maxItems"] == cap
    for part, field, cap in (
        ("group", "tensors", limits.MAX_TENSORS),
        ("plane", "streams", limits.MAX_STREAMS_PER_PLANE),
        ("stream", "chunks", limits.MAX_CHUNKS_PER_STREAM),
        ("tensor", "planes", limits.MAX_PLANES_PER_TENSOR),
    ):
        assert parts[part]["properties"][field]["maxItems"] == cap


def _package_folder() -> Path:
    return Path(next(iter(package.__path__)))
