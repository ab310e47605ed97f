"""Hostile files, numbered: each ends in a BundleError, quickly, without a large allocation.

1  cut off at any length              6  a manifest that is a decompression bomb
2  any byte flipped                   7  chunks that overlap, or hide in holes
3  bytes appended or put before       8  raw sizes that contradict the shape
4  another version, unknown flags     9  chunks that are decompression bombs
5  a footer that lies
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tiny_bundles import (
    Json,
    asset_of,
    chunk_of,
    forge,
    forge_text,
    manifest_text,
    read_all,
    refuses,
    symbols,
    writer,
)

from tersor.bundle import limits
from tersor.bundle.container import FOOTER_BYTES, HEADER_BYTES, Footer
from tersor.bundle.digests import checksum, digest_bytes
from tersor.bundle.errors import (
    BundleCorruptError,
    BundleError,
    BundleFormatError,
    BundleLimitError,
    BundleTruncatedError,
)
from tersor.bundle.verify import verify


def test_01_cut_off_at_any_length(bundle: Path) -> None:
    data = bundle.read_bytes()
    places = {
        chunk["offset"] + extra
        for plane in json.loads(manifest_text(data)[0])["planes"]
        for stream in plane["streams"]
        for chunk in stream["chunks"]
        for extra in (-1, 0, 1, chunk["stored_bytes"])
    }
    lengths = {*range(200), *places, *range(0, len(data), 97), *range(len(data) - 200, len(data))}
    for length in sorted(lengths, reverse=True):
        with bundle.open("r+b") as file:
            file.truncate(length)
        if length == 0:
            refuses(bundle, "not a bundle: it starts with nothing")
        else:
            refuses(bundle, "truncated", BundleTruncatedError)


def test_02_any_byte_flipped(bundle: Path) -> None:
    data = bundle.read_bytes()
    content = read_all(bundle)
    text, footer = manifest_text(data)
    value = json.loads(text)
    chunks = [
        chunk
        for plane in value["planes"]
        for stream in plane["streams"]
        for chunk in stream["chunks"]
    ]
    chunks += [asset["chunk"] for asset in value["assets"]]
    used = {*range(HEADER_BYTES), *range(footer.manifest_offset, len(data))}
    for chunk in chunks:
        used.update(range(chunk["offset"], chunk["offset"] + chunk["stored_bytes"]))
    padding = sorted(set(range(len(data))) - used)
    with bundle.open("r+b", buffering=0) as file:
        for offset in sorted([*used, *padding[::500]]):
            file.seek(offset)
            file.write(bytes([data[offset] ^ (1 << offset % 8)]))
            if offset in used:
                with pytest.raises(BundleError):
                    read_all(bundle)
            else:
                # Nothing reads padding but verification.
                assert read_all(bundle) == content
                assert [damage.kind for damage in verify(bundle).damages] == ["padding"]
            file.seek(offset)
            file.write(data[offset : offset + 1])
    assert read_all(bundle) == content


def test_03_bytes_appended_or_put_before(bundle: Path) -> None:
    data = bundle.read_bytes()
    bundle.write_bytes(data + b"\0")
    refuses(bundle, "does not end as one", BundleTruncatedError)
    bundle.write_bytes(data + data)
    refuses(bundle, f"has {2 * len(data)} bytes, but its footer says {len(data)}")
    bundle.write_bytes(b"PK" + data)
    refuses(bundle, "not a bundle: it starts with 50 4b 89")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, 3, "format version 3; this build reads versions 1 and 2, so update"),
        (12, 1, "flags 0x1"),
        (63, 1, "reserved bytes"),
        (8, 1, "footer has version 2 .*expected 1 as in the header"),
        (-16, 3, "footer has version 3"),
        (-16, 1, "footer has version 1 .*expected 2 as in the header"),
        (-12, 1, "reserved field 1"),
    ],
)
def test_04_another_version_or_unknown_flags(
    bundle: Path, offset: int, value: int, message: str
) -> None:
    data = bytearray(bundle.read_bytes())
    data[offset] = value
    bundle.write_bytes(data)
    refuses(bundle, message)


@pytest.mark.parametrize(
    ("changes", "message", "kind"),
    [
        ({"manifest_offset": 0}, "does not end at the footer", BundleFormatError),
        ({"manifest_offset": 1 << 63}, "does not end at the footer", BundleFormatError),
        ({"manifest_stored_bytes": 0}, "does not end at the footer", BundleFormatError),
        ({"manifest_stored_bytes": (1 << 64) - 1}, "this build reads at most", BundleLimitError),
        ({"manifest_raw_bytes": (1 << 64) - 1}, "this build reads at most", BundleLimitError),
        ({"manifest_raw_bytes": 1 << 27}, "cannot hold|declares", BundleError),
        ({"manifest_raw_bytes": 5}, "declares", BundleCorruptError),
        ({"file_bytes": 1 << 62}, "of 4611686018427387904; copy it again", BundleTruncatedError),
        ({"file_bytes": 1}, "its footer says 1", BundleFormatError),
    ],
)
def test_05_a_lying_footer(
    bundle: Path, changes: dict[str, int], message: str, kind: type[BundleError]
) -> None:
    data = bundle.read_bytes()
    footer = Footer.unpack(data[-FOOTER_BYTES:], len(data))
    fields: dict[str, Any] = {name: getattr(footer, name) for name in Footer.__dataclass_fields__}
    bundle.write_bytes(data[:-FOOTER_BYTES] + Footer(**{**fields, **changes}).pack())
    refuses(bundle, message, kind)


def test_06_a_manifest_that_is_a_bomb(bundle: Path) -> None:
    data = bundle.read_bytes()
    _, footer = manifest_text(data)
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(200 << 20))
    forged = Footer(
        manifest_offset=footer.manifest_offset,
        manifest_stored_bytes=len(bomb),
        manifest_raw_bytes=1000,
        file_bytes=footer.manifest_offset + len(bomb) + FOOTER_BYTES,
        manifest_digest=bytes.fromhex(digest_bytes(bomb)),
    )
    bundle.write_bytes(data[: footer.manifest_offset] + bomb + forged.pack())
    tracemalloc.start()
    refuses(bundle, "declares 209715200 raw bytes, expected 1000", BundleCorruptError)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20


def test_06_a_manifest_of_too_many_values(bundle: Path) -> None:
    forge_text(bundle, lambda _: b"[" + b"[]," * (limits.MAX_MANIFEST_VALUES // 2) + b"[]]")
    refuses(bundle, "JSON values; this build reads at most", BundleLimitError)


def _move(places: dict[tuple[int, int], int]) -> Callable[[Json], None]:
    def change(value: Json) -> None:
        for (plane, stream), shift in places.items():
            chunk_of(value, plane, stream)["offset"] += shift

    return change


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({(0, 0): -1}, "leaves a hole; expected offset 64"),
        ({(0, 1): -1}, "overlaps the one before it"),
        ({(0, 1): 1}, "leaves a hole"),
        ({(1, 0): 4096}, "leaves a hole"),
        ({(1, 0): -4096}, "overlaps the one before it"),
    ],
)
def test_07_overlaps_and_holes(
    bundle: Path, places: dict[tuple[int, int], int], message: str
) -> None:
    forge(bundle, _move(places))
    refuses(bundle, message)


def test_07_bytes_that_belong_to_no_chunk(bundle: Path) -> None:
    forge(bundle, lambda value: value["assets"].pop())
    refuses(bundle, "bytes before the manifest belong to no chunk")


def test_07_a_chunk_beyond_the_data(bundle: Path) -> None:
    forge(bundle, lambda value: asset_of(value, 1).update(stored_bytes=1 << 40))
    refuses(bundle, "cannot hold|beyond the manifest")
    forge(bundle, lambda value: asset_of(value, 1).update(raw_bytes=limits.MAX_ASSET_RAW_BYTES + 1))
    refuses(bundle, "raw bytes; this build reads at most", BundleLimitError)


@pytest.mark.parametrize("raw_bytes", [1, 127, 129, 1 << 30])
def test_08_raw_sizes_that_contradict_the_shape(bundle: Path, raw_bytes: int) -> None:
    forge(bundle, lambda value: chunk_of(value).update(raw_bytes=raw_bytes))
    refuses(bundle, f"declares {raw_bytes} raw bytes; its rows make 128")


def test_08_rows_per_chunk_that_contradicts_the_chunks(bundle: Path) -> None:
    forge(bundle, lambda value: value["planes"][0].update(rows_per_chunk=3))
    refuses(bundle, "has 1, 1 chunks; its shape and rows_per_chunk make 3")


def test_08_a_shape_larger_than_its_chunks(bundle: Path) -> None:
    forge(bundle, lambda value: value["planes"][0].update(shape=[8, 1 << 20], rows_per_chunk=8))
    refuses(bundle, "declares 128 raw bytes; its rows make 8388608")


def test_09_a_chunk_that_is_a_bomb(bundle: Path) -> None:
    # 16 stored bytes that claim to be a gigabyte: more than zstd can ever hold.
    def change(value: Json) -> None:
        asset = asset_of(value, 1)
        asset.update(raw_bytes=asset["stored_bytes"] * (1 << 15) + 1, codec="zstd")

    forge(bundle, change)
    refuses(bundle, "cannot hold 131073 raw bytes in 4 bytes of zstd")


def test_09_a_chunk_that_decodes_to_more_than_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(100 << 20))
    with writer(path) as target:
        target.add_asset("bomb", symbols("u8", (len(bomb),)).tobytes(), "application/zstd")
        manifest = target.commit()
    chunk = manifest.assets[0].chunk
    assert (chunk.codec, chunk.stored_bytes) == ("raw", len(bomb))
    data = path.read_bytes()
    path.write_bytes(data[: chunk.offset] + bomb + data[chunk.offset + len(bomb) :])
    digits = f"{checksum(bomb):016x}"
    forge(path, lambda v: asset_of(v, 0).update(codec="zstd", raw_bytes=9999, checksum=digits))
    tracemalloc.start()
    refuses(path, "declares 104857600 raw bytes, expected 9999", BundleCorruptError)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20
