"""Hostile parity: packets are worth what their neighbours say, and cost no more than their file.

25  forged packets: other geometries, other hashes, other bytes
26  packets and manifests that declare far more than the file has
27  a file full of what begins as a packet
28  any bytes in packets whose checksums match
"""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from call_count import calls_of
from damage import damage_block, geometry_in, overwrite, refuses_repair, restores
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundles import add, forge, noise, read_all, writer

from tersor.bundle.atomic_file import AtomicFile
from tersor.bundle.digests import checksum
from tersor.bundle.errors import BundleError, BundleParityError
from tersor.bundle.parity import ParityGeometry
from tersor.bundle.parity_encode import encode_section
from tersor.bundle.parity_packet import PACKET_MAGIC, pack_header, pack_packet
from tersor.bundle.parity_survey import find_parity
from tersor.bundle.protect import protect
from tersor.bundle.repair import repair
from tersor.bundle.verify import verify


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ParityGeometry]:
    """A bundle of 200 KB with some packets, and their geometry."""
    path = tmp_path_factory.mktemp("good") / "x.tersor"
    with writer(path, parity=0.1) as target:
        for layer in range(4):
            add(target, f"t{layer}", "u8", noise(50_000, seed=layer))
        target.commit()
    return path.read_bytes(), geometry_in(path)


def without_manifest(data: bytes, geometry: ParityGeometry) -> bytearray:
    """Nothing but packets tells the geometry."""
    damaged = bytearray(data)
    overwrite(damaged, geometry.manifest_offset, len(data))
    return damaged


def forged_packet(geometry: ParityGeometry, place: int, hashes: bytes | None = None) -> bytes:
    return pack_packet(
        pack_header(geometry, place),
        noise(8 * geometry.data_blocks).tobytes() if hashes is None else hashes,
        noise(geometry.block_bytes).tobytes(),
    )


def put(data: bytearray, geometry: ParityGeometry, place: int, packet: bytes) -> None:
    start = geometry.packet_offset(place)
    data[start : start + len(packet)] = packet


def other_geometry(geometry: ParityGeometry) -> ParityGeometry:
    """One whose packets have their own length, for the same file."""
    tail = geometry.file_bytes - geometry.manifest_offset
    parity = replace(geometry.parity, data_blocks=geometry.data_blocks - 5)
    return ParityGeometry.of(parity, tail)


def test_25_fewer_packets_of_another_geometry_are_outvoted(
    tmp_path: Path, good: tuple[bytes, ParityGeometry]
) -> None:
    whole, geometry = good
    data = without_manifest(whole, geometry)
    put(data, other_geometry(geometry), 0, forged_packet(other_geometry(geometry), 0))
    restores(tmp_path / "x.tersor", whole, data)


def test_25_more_packets_of_another_geometry_restore_nothing(
    tmp_path: Path, good: tuple[bytes, ParityGeometry]
) -> None:
    whole, geometry = good
    data = without_manifest(whole, geometry)
    other = other_geometry(geometry)
    for place in range(geometry.section_bytes // other.packet_bytes):
        put(data, other, place, forged_packet(other, place))
    refuses_repair(tmp_path / "x.tersor", data, "more is damaged than the parity restores")


def test_25_packets_that_fit_each_other_but_are_of_no_bundle(
    tmp_path: Path, good: tuple[bytes, ParityGeometry]
) -> None:
    """All that parity can say is in order, so only the result shows that it is no bundle."""
    whole, geometry = good
    path, other = tmp_path / "x.tersor", tmp_path / "other.tersor"
    data = bytearray(whole)
    data[-20] ^= 1  # of the footer's version
    target = AtomicFile(other)
    target.append(bytes(data))
    encode_section(target, geometry)
    target.publish()
    forged = bytearray(other.read_bytes())
    other.unlink()
    damage_block(forged, geometry, 9)
    refuses_repair(path, forged, "what the parity restores is no bundle: ")


def test_25_other_hashes_are_outvoted(tmp_path: Path, good: tuple[bytes, ParityGeometry]) -> None:
    whole, geometry = good
    data = bytearray(whole)
    damage_block(data, geometry, 3)
    put(data, geometry, 0, forged_packet(geometry, 0))
    restores(tmp_path / "x.tersor", whole, data)


def test_25_other_parity_under_the_same_hashes(
    tmp_path: Path, good: tuple[bytes, ParityGeometry]
) -> None:
    """Such a packet restores bytes that do not have the hash that it gives itself."""
    whole, geometry = good
    data = bytearray(whole)
    damage_block(data, geometry, 3 * geometry.stripes)
    start = geometry.packet_offset(0) + 80
    hashes = bytes(data[start : start + 8 * geometry.data_blocks])
    put(data, geometry, 0, forged_packet(geometry, 0, hashes))
    refuses_repair(tmp_path / "x.tersor", data, "the parity contradicts itself: block ")


def declaring(geometry: ParityGeometry, **changes: int) -> ParityGeometry:
    tail = geometry.file_bytes - geometry.manifest_offset
    return ParityGeometry.of(replace(geometry.parity, **changes), tail)


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 1 << 46},
        {"offset": 1 << 33},
        {"data_blocks": 1, "parity_blocks": 254},
        {"data_blocks": 1, "parity_blocks": 254, "offset": 1 << 24},
    ],
)
def test_26_packets_that_declare_more_than_there_is(
    tmp_path: Path, good: tuple[bytes, ParityGeometry], changes: dict[str, int]
) -> None:
    path = tmp_path / "x.tersor"
    forged = declaring(good[1], **changes)
    data = bytearray(noise(1000).tobytes())
    for place in range(40):
        data += forged_packet(forged, place)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(BundleParityError):
            repair(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 26
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "changes", [{"data_blocks": 1}, {"parity_blocks": 1}, {"block_bytes": 8192}]
)
def test_26_a_manifest_whose_parity_does_not_fit_its_section(
    tmp_path: Path, good: tuple[bytes, ParityGeometry], changes: dict[str, int]
) -> None:
    """It opens, since parity is not looked at then; verification finds it, and repair too."""
    path = tmp_path / "x.tersor"
    path.write_bytes(good[0])
    forge(path, lambda value: value["parity"].update(changes))
    assert read_all(path)
    report = verify(path)
    assert {damage.kind for damage in report.damages} == {"parity"}
    assert "does not have the length" in report.damages[0].message
    before = path.read_bytes()
    with pytest.raises(BundleParityError):
        repair(path)
    assert path.read_bytes() == before
    protect(path, 0.1)
    assert verify(path).ok


@pytest.mark.parametrize("size", [100_000, 1_000_000])
@pytest.mark.parametrize("kind", ["magics", "headers", "nested"])
def test_27_a_file_full_of_beginnings(
    tmp_path: Path, good: tuple[bytes, ParityGeometry], kind: str, size: int
) -> None:
    path = tmp_path / "x.tersor"
    piece = {
        "magics": PACKET_MAGIC,
        "headers": pack_header(good[1], 0),
        "nested": pack_header(declaring(good[1], block_bytes=65536), 0),
    }[kind]
    path.write_bytes(piece * (size // len(piece)))
    found: list[object] = []
    calls = calls_of(lambda: found.append(find_parity(path)))
    assert found == [None]
    # Some thousand candidates at most, with a small multiple of calls each.
    assert calls < 200_000


def test_27_geometries_without_number(tmp_path: Path, good: tuple[bytes, ParityGeometry]) -> None:
    """Whole packets, each of a geometry of its own."""
    path = tmp_path / "x.tersor"
    _, geometry = good
    data = bytearray()
    for number in range(300):
        forged = declaring(geometry, data_blocks=1, parity_blocks=1, offset=4096 * (2 + number))
        data += forged_packet(forged, 0)
    path.write_bytes(data)
    with pytest.raises(BundleParityError):
        repair(path)
    assert path.read_bytes() == data


@given(data=st.data())
@settings(derandomize=True, max_examples=80, deadline=None)
def test_28_any_bytes_behind_valid_checksums(
    tmp_path_factory: pytest.TempPathFactory,
    good: tuple[bytes, ParityGeometry],
    data: st.DataObject,
) -> None:
    whole, geometry = good
    damaged = without_manifest(whole, geometry) if data.draw(st.booleans()) else bytearray(whole)
    for place in data.draw(
        st.sets(st.integers(0, geometry.packets - 1), max_size=geometry.packets)
    ):
        start = geometry.packet_offset(place)
        body = bytearray(damaged[start : start + geometry.packet_bytes - 8])
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(8, 79) | st.integers(80, len(body) - 1))
            body[at] = data.draw(st.integers(0, 255))
        damaged[start : start + len(body) + 8] = body + checksum(bytes(body)).to_bytes(8, "little")
    damage_block(damaged, geometry, data.draw(st.integers(0, geometry.blocks - 1)))
    path = tmp_path_factory.getbasetemp() / "fuzz.tersor"
    path.write_bytes(damaged)
    find_parity(path)
    with suppress(BundleError):
        verify(path)
    try:
        repair(path)
    except BundleError:
        assert path.read_bytes() == damaged
    else:
        # A forged parity block that nothing was restored from may stand.
        repaired = path.read_bytes()
        assert repaired[: geometry.offset] == whole[: geometry.offset]
        assert repaired[geometry.manifest_offset :] == whole[geometry.manifest_offset :]
