"""Repair gives back the identical file, or says what is lost and touches nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import (
    damage_block,
    damage_packet,
    geometry_in,
    overwrite,
    refuses_repair,
    restores,
    write_layers,
)
from tiny_bundles import add, forge, symbols, write_tiny, writer

from tersor.bundle.container import FOOTER_BYTES
from tersor.bundle.errors import BundleWriteError
from tersor.bundle.parity import ParityGeometry
from tersor.bundle.parity_survey import find_parity
from tersor.bundle.protect import protect
from tersor.bundle.repair import repair
from tersor.bundle.verify import verify


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ParityGeometry]:
    """The bytes of a bundle of three layers, and the geometry of its parity."""
    path = tmp_path_factory.mktemp("layers") / "x.tersor"
    write_layers(path, parity=0.05)
    return path.read_bytes(), geometry_in(path)


# --- one kind of damage at a time -------------------------------------------------------------

Change = Callable[[bytearray, ParityGeometry], bytes | bytearray | None]


def _wiped(start: str, end: str) -> Change:
    def change(data: bytearray, geometry: ParityGeometry) -> None:
        places = {
            "start": 0, "header": 64, "section": geometry.offset,
            "packet": geometry.offset + geometry.packet_bytes,
            "manifest": geometry.manifest_offset, "footer": len(data) - FOOTER_BYTES,
            "end": len(data),
        }  # fmt: skip
        data[places[start] : places[end]] = bytes(places[end] - places[start])

    return change


def _headers_of_packets(data: bytearray, geometry: ParityGeometry) -> None:
    for place in range(geometry.packets):
        data[geometry.packet_offset(place) + place % 80] ^= 1


def _magics(data: bytearray, geometry: ParityGeometry) -> None:
    for at in (0, geometry.offset, len(data) - 8):
        overwrite(data, at, 8)


DAMAGE: dict[str, Change] = {
    "header": _wiped("start", "header"),
    "footer": _wiped("footer", "end"),
    "manifest": _wiped("manifest", "footer"),
    "manifest and footer": _wiped("manifest", "end"),
    "first packet": _wiped("section", "packet"),
    "whole section": _wiped("section", "manifest"),
    "header of every packet": _headers_of_packets,
    "cut off by a byte": lambda data, _: data[:-1],
    "cut off before the manifest": lambda data, geometry: data[: geometry.manifest_offset],
    "cut off in the section": lambda data, geometry: data[: geometry.manifest_offset - 9000],
    "something appended": lambda data, _: data + b"more",
    "a page appended": lambda data, _: data + bytes(4096),
    "section moved": lambda data, geometry: (
        data[: geometry.offset] + b"moved" + data[geometry.offset :]
    ),
    "a hole in the section": lambda data, geometry: (
        data[: geometry.offset + 10_000] + data[geometry.offset + 11_000 :]
    ),
    "a flipped bit in padding": lambda data, _: overwrite(data, 100, 1),
    "every magic": _magics,
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_within_capacity(
    tmp_path: Path, layers: tuple[bytes, ParityGeometry], change: Change
) -> None:
    whole, geometry = layers
    data = bytearray(whole)
    changed = change(data, geometry)
    restores(tmp_path / "x.tersor", whole, bytes(data if changed is None else changed))


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_verify_and_a_look_at_the_parity_promise(
    tmp_path: Path, layers: tuple[bytes, ParityGeometry], change: Change
) -> None:
    """Whether the manifest can be read or not, the answer is the one that repair gives."""
    whole, geometry = layers
    data = bytearray(whole)
    changed = change(data, geometry)
    path = tmp_path / "x.tersor"
    path.write_bytes(data if changed is None else changed)
    found = find_parity(path)
    if found is None or found.bare_stripes:  # no packet is left: only the manifest tells
        found = verify(path).parity
    assert found is not None
    assert found.repairable is True


def test_nothing_is_written_where_nothing_is_damaged(
    tmp_path: Path, layers: tuple[bytes, ParityGeometry]
) -> None:
    path, other = tmp_path / "x.tersor", tmp_path / "y.tersor"
    path.write_bytes(layers[0])
    before = path.stat()
    assert repair(path).output is None
    assert path.stat() == before
    assert repair(path, output=other).output == other
    assert other.read_bytes() == layers[0]


def test_repair_elsewhere_leaves_the_damaged_file(
    tmp_path: Path, layers: tuple[bytes, ParityGeometry]
) -> None:
    whole, geometry = layers
    path, other = tmp_path / "x.tersor", tmp_path / "y.tersor"
    data = bytearray(whole)
    damage_block(data, geometry, 7)
    damage_packet(data, geometry, 3, at=500)
    path.write_bytes(data)
    other.write_bytes(b"taken")
    with pytest.raises(BundleWriteError, match="exists; choose another name"):
        repair(path, output=other)
    assert other.read_bytes() == b"taken"
    report = repair(path, output=other, force=True)
    assert (report.restored_blocks, report.restored_packets) == (1, 1)
    assert other.read_bytes() == whole
    assert path.read_bytes() == data


def test_a_file_of_sectors_that_cannot_be_read(
    tmp_path: Path, layers: tuple[bytes, ParityGeometry], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, geometry = layers
    path = tmp_path / "x.tersor"
    path.write_bytes(whole)
    bad = [(50_000, 54_096), (geometry.offset + 100, geometry.offset + 700), (0, 512)]
    inode, preadv = path.stat().st_ino, os.preadv

    def failing(fd: int, buffers: list[memoryview], offset: int) -> int:
        end = offset + sum(map(len, buffers))
        if os.fstat(fd).st_ino == inode and any(a < end and offset < b for a, b in bad):
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    report = repair(path)
    assert path.read_bytes() == whole
    assert report.restored_blocks >= 2
    assert report.restored_packets == 1


def test_parity_in_a_bundle_that_carries_another_one(tmp_path: Path) -> None:
    """The packets of the bundle inside are whole, and more than those of the one around it."""
    inner, path = tmp_path / "inner.tersor", tmp_path / "x.tersor"
    with writer(inner, parity=0.5) as target:
        add(target, "w", "i8", symbols("i8", (300, 1000)))
        target.commit()
    with writer(path, parity=0.05) as target:
        add(target, "w", "u8", np.frombuffer(inner.read_bytes(), np.uint8))
        target.commit()
    inner.unlink()
    whole, geometry = path.read_bytes(), geometry_in(path)
    data = bytearray(whole)
    overwrite(data, geometry.manifest_offset, 1 << 20)
    damage_block(data, geometry, 5)
    restores(path, whole, data)


# --- beyond the capacity ----------------------------------------------------------------------


def test_a_refusal_says_what_is_lost(tmp_path: Path, layers: tuple[bytes, ParityGeometry]) -> None:
    whole, geometry = layers
    path = tmp_path / "x.tersor"
    data = bytearray(whole)
    stripe = 1
    blocks = range(stripe, geometry.blocks, geometry.stripes)[55 : 57 + geometry.parity_blocks]
    for block in blocks:
        damage_block(data, geometry, block)
    damage_packet(data, geometry, stripe + geometry.stripes)
    damage_block(data, geometry, 0)  # in another stripe, and restorable
    assert geometry.stripes > 1
    error = refuses_repair(path, data, "more is damaged than the parity restores: stripe 1 has ")
    assert error.report is not None
    (lost,) = error.report.parity.lost_stripes
    assert lost.stripe == stripe
    assert lost.damaged_blocks == geometry.parity_blocks + 2
    assert lost.whole_packets == geometry.parity_blocks - 1
    assert lost.excess == 3
    assert "3 too many" in str(error)
    damages = error.report.lost
    # Exactly the chunks that verification finds damaged; the header is not lost.
    data[:64] = whole[:64]
    path.write_bytes(data)
    listed = [damage for damage in verify(path).damages if damage.kind == "chunk"]
    assert [damage.offset for damage in damages] == [damage.offset for damage in listed]
    assert len(damages) >= 2
    for damage in damages:
        assert damage.tensors == damage.groups
        assert damage.tensors[0].startswith("layers.")
    assert damages[0].described() in str(error)
    assert f"; group {damages[0].groups[0]})" in str(error)


def test_a_lost_manifest_names_no_tensors(
    tmp_path: Path, layers: tuple[bytes, ParityGeometry]
) -> None:
    whole, geometry = layers
    data = bytearray(whole)
    last = geometry.blocks - 1
    for block in range(last, -1, -geometry.stripes)[: geometry.parity_blocks + 1]:
        damage_block(data, geometry, block)
    error = refuses_repair(tmp_path / "x.tersor", data, "no manifest can be read that names")
    assert error.report is not None
    assert [damage.kind for damage in error.report.lost] == ["manifest"]
    (lost,) = error.report.parity.lost_stripes
    assert (lost.stripe, lost.excess) == (last % geometry.stripes, 1)


def test_a_damaged_manifest_is_restored_to_name_what_is_lost(
    tmp_path: Path, layers: tuple[bytes, ParityGeometry]
) -> None:
    whole, geometry = layers
    data = bytearray(whole)
    other = (geometry.blocks - 2) % geometry.stripes
    for block in range(other, geometry.blocks, geometry.stripes)[1 : geometry.parity_blocks + 2]:
        damage_block(data, geometry, block)
    overwrite(data, len(data) - 100, 100)
    error = refuses_repair(
        tmp_path / "x.tersor", data, f"stripe {other} has .* 1 too many; lost: chunk "
    )
    assert error.report is not None
    assert all(damage.groups for damage in error.report.lost)


def test_the_header_is_lost_too(tmp_path: Path, layers: tuple[bytes, ParityGeometry]) -> None:
    whole, geometry = layers
    data = bytearray(whole)
    for block in range(0, geometry.blocks, geometry.stripes)[: geometry.parity_blocks + 1]:
        damage_block(data, geometry, block)
    error = refuses_repair(tmp_path / "x.tersor", data, "lost: the header may be lost; chunk ")
    assert error.report is not None
    assert error.report.lost[0].kind == "header"


def test_no_packet_left_and_damaged_data(
    tmp_path: Path, layers: tuple[bytes, ParityGeometry]
) -> None:
    whole, geometry = layers
    data = bytearray(whole)
    overwrite(data, geometry.offset, geometry.section_bytes)
    data[100_000] ^= 1
    path = tmp_path / "x.tersor"
    error = refuses_repair(
        path, data, r"have no whole packet left, and their data is damaged: chunk 0 of "
    )
    assert error.report is not None
    assert [damage.tensors for damage in error.report.lost] == [("layers.0",)]
    report = verify(path).parity
    assert report is not None
    assert (report.repairable, report.bare_stripes) == (None, geometry.stripes)
    data[-1] ^= 1
    refuses_repair(path, data, "no parity was found in the file")


def test_one_bare_stripe_with_a_damaged_manifest(tmp_path: Path) -> None:
    """Its own stripe has no packet, so nothing tells what the manifest was."""
    path = tmp_path / "x.tersor"
    write_layers(path, parity=0.05)
    whole, geometry = path.read_bytes(), geometry_in(path)
    data = bytearray(whole)
    last = (geometry.blocks - 1) % geometry.stripes
    for place in range(last, geometry.packets, geometry.stripes):
        damage_packet(data, geometry, place)
    path.write_bytes(data)
    restores(path, whole, data)
    data[-1] ^= 1
    refuses_repair(path, data, "restores is no bundle: .*; 1 stripes have no whole packet")


@pytest.mark.parametrize("kept", [4096, 100_000, 2_000_000])
def test_far_too_short(tmp_path: Path, layers: tuple[bytes, ParityGeometry], kept: int) -> None:
    refuses_repair(tmp_path / "x.tersor", layers[0][:kept], "no parity was found in the file")


def test_a_bundle_without_parity(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_tiny(path)
    refuses_repair(path, path.read_bytes(), "the bundle has no parity")
    refuses_repair(path, path.read_bytes()[:-1], "no parity was found")
    assert find_parity(path) is None


def test_parity_of_other_bytes_restores_nothing(tmp_path: Path) -> None:
    """A valid bundle that was changed after its parity: the older bytes must not come back."""
    path, other = tmp_path / "a.tersor", tmp_path / "b.tersor"

    def write(target_path: Path, seed: int) -> bytes:
        with writer(target_path, parity=0.05) as target:
            add(target, "w", "i8", symbols("i8", (300, 1000), seed=seed))
            target.commit()
        return target_path.read_bytes()

    old = write(other, 0)
    # Digests compress to a few bytes more or less; the packets of another length are no packets.
    new = next(data for seed in range(1, 100) if len(data := write(path, seed)) == len(old))
    geometry = geometry_in(path)
    section = slice(geometry.offset, geometry.manifest_offset)
    stale = bytearray(new)
    stale[section] = old[section]
    other.unlink()
    path.write_bytes(stale)
    report = verify(path)
    assert [damage.kind for damage in report.damages] == ["parity"]
    assert "computed of other bytes" in report.damages[0].message
    assert report.parity is not None
    assert report.parity.repairable is False
    refuses_repair(path, stale, "the bundle is whole, but its parity was computed of other bytes")
    protect(path, 0.05)
    assert path.read_bytes() == new


def test_packets_of_another_length_are_computed_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_layers(path, parity=0.05)
    forge(path, lambda value: value.update(producer="another tersor"))
    report = verify(path)
    assert {damage.kind for damage in report.damages} == {"parity"}
    assert report.parity is not None
    assert report.parity.repairable is True
    repair(path)
    assert verify(path).ok
