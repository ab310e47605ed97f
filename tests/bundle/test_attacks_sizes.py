"""Hostile sizes with valid digests, numbered on from the hostile manifests.

21  many tensors that share a plane of many chunks
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundles import Json, add, forge, symbols, writer

from tersor.bundle import limits
from tersor.bundle.reader import BundleReader


def calls_of(work: Callable[[], object]) -> int:
    """Function calls of this thread while `work` runs: time that no other process disturbs."""
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.fixture
def many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One tensor whose plane has 3000 chunks of a byte."""
    path = tmp_path / "chunks.tersor"
    monkeypatch.setattr(limits, "TARGET_BLOCK_RAW_BYTES", 1)
    monkeypatch.setattr(limits, "MAX_TARGET_BLOCK_RAW_BYTES", 1)
    with writer(path, codec="raw") as target:
        add(target, "w", "u8", symbols("u8", (3000, 1)))
        target.commit()
    return path


def share(path: Path, tensors: int) -> None:
    """Lets that many tensors use the first plane."""

    def change(value: Json) -> None:
        first = {**value["tensors"][0], "sources": []}
        names = [f"t{index}" for index in range(tensors)]
        value["tensors"] = [{**first, "name": name} for name in names]
        value["groups"] = [{"name": "embedding", "tensors": names}]

    forge(path, change)


def test_21_a_shared_plane_is_checked_once(many_chunks: Path) -> None:
    share(many_chunks, 1)
    one = calls_of(lambda: BundleReader.open(many_chunks).close())
    share(many_chunks, 300)
    many = calls_of(lambda: BundleReader.open(many_chunks).close())
    # A tensor costs its own fields, not its plane's chunks.
    assert one > 3000
    assert many - one < 299 * 300


def test_21_the_size_of_a_shared_plane_is_summed_once(many_chunks: Path) -> None:
    share(many_chunks, 300)
    with BundleReader.open(many_chunks) as reader:
        planes = [tensor.planes[0] for tensor in reader.manifest.tensors]
        sizes: list[int] = []
        calls = calls_of(lambda: sizes.extend(plane.stored_bytes for plane in planes))
        assert sizes == [3000] * 300
        assert calls < 300 * 20
