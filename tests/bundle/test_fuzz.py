"""Bounded, deterministic fuzzing behind valid digests and checksums."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundles import (
    forge,
    forge_text,
    manifest_text,
    read_all,
    write_tiny,
)

from tersor.bundle.codecs import CODEC_NAMES
from tersor.bundle.digests import checksum
from tersor.bundle.errors import (
    BundleError,
)
from tersor.bundle.verify import verify


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "x.tersor"
    write_tiny(path)
    return path, path.read_bytes()


@given(data=st.data())
@settings(derandomize=True, max_examples=150, deadline=None)
def test_fuzz_manifests_with_valid_digests(tiny: tuple[Path, bytes], data: st.DataObject) -> None:
    path, original = tiny
    path.write_bytes(original)

    def mutate(text: bytes) -> bytes:
        mutable = bytearray(text)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(mutable) - 1))
            length = data.draw(st.integers(0, 6))
            mutable[at : at + length] = data.draw(
                st.binary(max_size=6) | st.sampled_from([b"0", b"9", b"-1", b"[]", b"{}", b'""'])
            )
        return bytes(mutable) or b" "

    forge_text(path, mutate)
    with suppress(BundleError):
        read_all(path)
    with suppress(BundleError):
        verify(path)


@given(data=st.data())
@settings(derandomize=True, max_examples=100, deadline=None)
def test_fuzz_stored_chunks_with_valid_checksums(
    tiny: tuple[Path, bytes], data: st.DataObject
) -> None:
    """The codecs and filters themselves meet arbitrary bytes."""
    path, original = tiny
    mutable = bytearray(original)
    value = json.loads(manifest_text(original)[0])
    plane = data.draw(st.sampled_from([p for p in value["planes"] if p["streams"][0]["chunks"]]))
    chunk = data.draw(st.sampled_from(plane["streams"]))["chunks"][0]
    start, size = chunk["offset"], chunk["stored_bytes"]
    for _ in range(data.draw(st.integers(1, 8))):
        mutable[start + data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    chunk["checksum"] = f"{checksum(bytes(mutable[start : start + size])):016x}"
    chunk["codec"] = data.draw(st.sampled_from(CODEC_NAMES))
    path.write_bytes(bytes(mutable))
    forge(path, lambda text: text.update(value))
    with suppress(BundleError):
        read_all(path)
