"""Verification names every damaged part, and raises only where nothing can be named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_bundles import add, forge, symbols, weights, write_tiny, writer

from tersor.bundle.digests import checksum
from tersor.bundle.errors import BundleCorruptError, BundleNotFoundError, BundleTruncatedError
from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def test_an_intact_bundle_is_counted_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_tiny(path)
    seen: list[tuple[int, int]] = []
    report = verify(path, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.damages == ()
    # Shared planes count once; the empty one has no chunk.
    assert (report.planes, report.chunks, report.assets) == (6, 8, 2)
    assert report.file_bytes == path.stat().st_size
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {report.file_bytes}


def test_every_damaged_chunk_is_named_with_all_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    manifest = write_tiny(path)
    shared = manifest.tensor("embedding").planes[0].streams[1].chunks[0]
    codes = manifest.tensor("layers.0.qkv").planes[0].streams[0].chunks[0]
    _flip(path, shared.offset)
    _flip(path, codes.offset)
    report = verify(path)
    assert not report.ok
    assert [(d.kind, d.tensors, d.plane, d.stream, d.chunk, d.offset) for d in report.damages] == [
        ("chunk", ("embedding", "head"), "values", "mantissa0", 0, shared.offset),
        ("chunk", ("layers.0.qkv",), "codes", "data", 0, codes.offset),
    ]
    assert "chunk 0 of stream 'mantissa0' of plane 'values' is damaged" in report.damages[0].message


def test_several_chunks_of_one_plane(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    with writer(path) as target:
        add(target, "w", "i8", symbols("i8", (4000, 1000)))
        manifest = target.commit()
    chunks = manifest.tensors[0].planes[0].streams[0].chunks
    assert len(chunks) == 4
    for index in (0, 2):
        _flip(path, chunks[index].offset + 99)
    assert [damage.chunk for damage in verify(path).damages] == [0, 2]


def test_a_damaged_asset_and_padding(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    manifest = write_tiny(path)
    _flip(path, manifest.assets[1].chunk.offset)
    _flip(path, 4000)
    report = verify(path)
    assert [(damage.kind, damage.asset, damage.offset) for damage in report.damages] == [
        ("padding", None, 64),
        ("asset", "licences/LICENSE", manifest.assets[1].chunk.offset),
    ]


def test_a_plane_that_decodes_to_other_values_is_found_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    with writer(path, codec="raw") as target:
        add(target, "w", "i8", symbols("i8", (4, 4)))
        manifest = target.commit()
    chunk = manifest.tensors[0].planes[0].streams[0].chunks[0]
    _flip(path, chunk.offset)
    stored = path.read_bytes()[chunk.offset : chunk.offset + chunk.stored_bytes]

    def change(value: dict[str, Any]) -> None:
        value["planes"][0]["streams"][0]["chunks"][0]["checksum"] = f"{checksum(stored):016x}"

    forge(path, change)
    (damage,) = verify(path).damages
    assert (damage.kind, damage.tensors, damage.plane) == ("plane", ("w",), "values")
    assert "decodes to other values than were written" in damage.message


def test_a_wrong_content_digest_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_tiny(path)
    forge(path, lambda value: value.update(digest="0" * 64))
    (damage,) = verify(path).damages
    assert damage.kind == "digest"


def test_what_cannot_be_listed_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    with pytest.raises(BundleNotFoundError):
        verify(path)
    write_tiny(path)
    with BundleReader.open(path) as reader:
        size = reader.file_bytes
    _flip(path, size - 90)
    with pytest.raises(BundleCorruptError, match=r"x\.tersor: the manifest is damaged"):
        verify(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleTruncatedError, match=r"x\.tersor: the file is truncated"):
        verify(path)


def test_verify_reads_planes_of_many_chunks(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    with writer(path) as target:
        add(target, "w", "bf16", weights((3000, 800)))
        target.commit()
    assert verify(path).chunks == 10
