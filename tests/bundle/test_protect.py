"""Parity for bundles that are there: whole ones only, and in place or elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from damage import geometry_in, write_layers
from golden_bundles import KINDS, write_golden
from tiny_bundles import add, read_all, symbols, write_tiny, writer

from tersor.bundle.errors import BundleCorruptError, BundleWriteError
from tersor.bundle.places import places
from tersor.bundle.protect import protect
from tersor.bundle.reader import BundleReader
from tersor.bundle.verify import verify

GOLDEN = Path(__file__).resolve().parent / "golden"


def test_protect_refuses_a_damaged_bundle_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_layers(path)
    with BundleReader.open(path) as reader:
        chunk = reader.manifest.tensor("layers.2").planes[0].streams[0].chunks[0]
    data = bytearray(path.read_bytes())
    data[chunk.offset + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleCorruptError, match=r"damaged.*\(tensor layers.2; group layers.2\)"):
        protect(path, 0.05)
    data[chunk.offset + 5] ^= 1
    data[100] = 1
    path.write_bytes(data)
    with pytest.raises(BundleCorruptError, match=r"4032 bytes at offset 64 .* are not zero"):
        protect(path, 0.05)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_protect_replaces_damaged_parity(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_layers(path, parity=0.05)
    data, geometry = bytearray(path.read_bytes()), geometry_in(path)
    whole = bytes(data)
    data[geometry.offset : geometry.manifest_offset] = bytes(geometry.section_bytes)
    path.write_bytes(data)
    protect(path, 0.05)
    assert path.read_bytes() == whole


def test_protect_keeps_permissions_and_links(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path, link = folder / "x.tersor", tmp_path / "link.tersor"
    write_tiny(path)
    path.chmod(0o640)
    link.symlink_to(path)
    protect(link, 0.05)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert verify(path).parity is not None


def test_protect_writes_elsewhere_only_where_nothing_is(tmp_path: Path) -> None:
    path, other = tmp_path / "x.tersor", tmp_path / "y.tersor"
    write_tiny(path)
    before = path.read_bytes()
    protect(path, 0.05, output=other)
    assert path.read_bytes() == before
    with pytest.raises(BundleWriteError, match="exists; choose another name"):
        protect(path, 0.3, output=other)
    protect(path, 0.3, output=other, force=True)
    report = verify(other).parity
    assert report is not None
    assert sorted(tmp_path.iterdir()) == [path, other]


@pytest.mark.parametrize("kind", KINDS)
def test_protect_knows_tables_and_shared_chunks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.tersor"
    write_golden(path, kind)
    content = read_all(path)
    protect(path, 0.05)
    assert verify(path).ok
    assert read_all(path) == content


def test_protect_raises_the_version(tmp_path: Path) -> None:
    """Version 1 has no parity; but for its number, its files are files of version 2."""
    path = tmp_path / "x.tersor"
    shutil.copy(GOLDEN / "v1-auto.tersor", path)
    content = read_all(path)
    protect(path, 0.05)
    data = path.read_bytes()
    assert (data[8:12], data[-16:-12]) == (b"\2\0\0\0", b"\2\0\0\0")
    assert verify(path).ok
    assert read_all(path) == content


def test_places_name_every_user_of_a_shared_chunk(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    block = symbols("i8", (1024, 1024))
    with writer(path, parity=0.05) as target:
        add(target, "a", "i8", np.concatenate([block, block]), group="layers.0")
        add(target, "b", "i8", np.concatenate([block, block + 1]), group="layers.1")
        manifest = target.commit()
    first, second = places(manifest)
    assert first.tensors == ("a", "b")
    assert first.groups == ("layers.0", "layers.1")
    assert (second.tensors, second.index) == (("b",), 1)
    assert (first.chunk.offset, second.chunk.offset) == (4096, first.end)
