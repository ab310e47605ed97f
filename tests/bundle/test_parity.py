"""Parity as it is written: where it stands, what is in it, and that nothing else changes."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
import xxhash
import zstandard
from damage import geometry_in, overwrite, restores, write_layers
from tiny_bundles import (
    forge,
    manifest_text,
    read_all,
    refuses,
    write_tiny,
    writer,
)

from tersor import bundle as package
from tersor.bundle.errors import BundleCorruptError, BundleFormatError, BundleWriteError
from tersor.bundle.parity import ParityGeometry, plan_parity
from tersor.bundle.protect import protect
from tersor.bundle.verify import verify

GOLDEN = Path(__file__).resolve().parent / "golden"
GOLDEN_HASH = "801f4aadb048c4adca2087a187bbb821af0be49964205f51ef4fe4c48b1369c1"
FRACTIONS = [0.005, 0.01, 0.05, 0.1, 0.333, 0.5]
SIZES = [
    65,
    4096,
    21_000,
    100_000,
    140_000,
    333_000,
    1 << 20,
    3_000_000,
    10_000_000,
    1 << 28,
    1 << 36,
]


# --- geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_plans_are_valid_and_about_as_large_as_asked_for(size: int, fraction: float) -> None:
    parity = plan_parity(size, fraction)
    assert parity.offset == -(-size // 4096) * 4096
    geometry = ParityGeometry.of(parity, 81 + size // 5000)
    geometry.check()
    assert geometry.stripes * geometry.data_blocks >= geometry.blocks
    assert parity.parity_blocks >= fraction * parity.data_blocks - 1e-9
    share = geometry.section_bytes / geometry.protected_bytes
    if size >= 1 << 20:
        # The hashes in the packets are half a block where blocks are as small as they may be.
        assert share < 1.6 * fraction + 0.01
    if size >= 1 << 28:
        assert share < 1.1 * fraction + 0.005
    else:
        assert geometry.section_bytes < 30_000 + 1.6 * fraction * geometry.protected_bytes


@pytest.mark.parametrize("size", [*SIZES[:-2], *range(4096, 1_500_000, 61_441)])
def test_any_burst_of_3_percent_fits_parity_of_5_percent(size: int) -> None:
    geometry = ParityGeometry.of(plan_parity(size, 0.05), 81 + size // 2000)
    length = 3 * geometry.file_bytes // 100
    step = max(4096 + 512, geometry.file_bytes // 300)
    for start in range(0, geometry.file_bytes - length, step):
        assert max(damaged_units(geometry, start, start + length)) <= geometry.parity_blocks


def damaged_units(geometry: ParityGeometry, start: int, end: int) -> list[int]:
    """For each stripe, the blocks and packets that a burst touches: by the format's page alone."""
    counts = [0] * geometry.stripes
    touched = set()
    for at in [*range(start, end, 1024), end - 1]:
        if geometry.offset <= at < geometry.manifest_offset:
            place = (at - geometry.offset) // geometry.packet_bytes
            touched.add(("packet", place, place % geometry.stripes))
        else:
            protected = at if at < geometry.offset else at - geometry.section_bytes
            block = protected // geometry.block_bytes
            touched.add(("block", block, block % geometry.stripes))
    for _, _, stripe in touched:
        counts[stripe] += 1
    return counts


def test_every_protected_byte_is_in_one_block() -> None:
    geometry = ParityGeometry.of(plan_parity(50_000, 0.05), 5000)
    places = [
        offset + byte
        for block in range(geometry.blocks)
        for offset, size in geometry.block_pieces(block)
        for byte in range(size)
    ]
    assert places == [
        *range(geometry.offset),
        *range(geometry.manifest_offset, geometry.file_bytes),
    ]
    assert list(geometry.block_pieces(geometry.blocks)) == []


@pytest.mark.parametrize("fraction", [0.0, 0.0049, 0.51, 5.0, float("nan")])
def test_shares_that_cannot_be(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(BundleWriteError, match=r"expected 0\.5 % to 50 %"):
        writer(tmp_path / "x.tersor", parity=fraction)
    assert not list(tmp_path.iterdir())
    write_tiny(tmp_path / "x.tersor")
    with pytest.raises(BundleWriteError, match="out of range"):
        protect(tmp_path / "x.tersor", fraction)


# --- bytes ------------------------------------------------------------------------------------


def powers() -> list[int]:
    """1, x, x^2, … in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1: every element but 0."""
    found = [1]
    while len(found) < 255:
        found.append(found[-1] << 1 ^ (0x11D if found[-1] & 0x80 else 0))
    return found


EXP = powers()
LOG = {value: power for power, value in enumerate(EXP)}
POINTS = [0, *EXP]


def multiply(a: int, b: int) -> int:
    return EXP[(LOG[a] + LOG[b]) % 255] if a and b else 0


def coefficients(data_blocks: int, index: int) -> list[int]:
    """Lagrange: what each data block is multiplied by in parity block `index`."""
    x = POINTS[data_blocks + index]
    return [
        EXP[
            sum(
                LOG[x ^ POINTS[j]] - LOG[POINTS[i] ^ POINTS[j]]
                for j in range(data_blocks)
                if j != i
            )
            % 255
        ]
        for i in range(data_blocks)
    ]


def test_packets_byte_by_byte(tmp_path: Path) -> None:
    """Against the specification's numbers and formula, not against our own code."""
    path = tmp_path / "x.tersor"
    write_layers(path, parity=0.05)
    data = path.read_bytes()
    parity = json.loads(manifest_text(data)[0])["parity"]
    begin, size, k, m = (
        parity[key] for key in ("offset", "block_bytes", "data_blocks", "parity_blocks")
    )
    (manifest_offset,) = struct.unpack_from("<Q", data, len(data) - 80)
    protected = data[:begin] + data[manifest_offset:]
    blocks = -(-len(protected) // size)
    stripes = -(-blocks // k)
    assert stripes > 1
    protected = protected.ljust(stripes * k * size, b"\0")
    block = [protected[at * size : (at + 1) * size] for at in range(stripes * k)]
    length = 80 + 8 * k + size + 8
    assert manifest_offset == begin + stripes * m * length
    assert not any(data[data_end(path) : begin])
    for index, stripe in itertools.product(range(m), range(stripes)):
        at = begin + (index * stripes + stripe) * length
        packet = data[at : at + length]
        mine = [block[row * stripes + stripe] for row in range(k)]
        assert packet[:80] == b"\x89TSPAR\r\n" + struct.pack(
            "<IIIIQQQQQQII",
            1, size, k, m, stripes, blocks, len(data), begin, manifest_offset, stripe, index, 0,
        )  # fmt: skip
        assert packet[80 : 80 + 8 * k] == b"".join(
            struct.pack("<Q", xxhash.xxh3_64_intdigest(row)) for row in mine
        )
        assert packet[-8:] == struct.pack("<Q", xxhash.xxh3_64_intdigest(packet[:-8]))
        if index in {0, 1, m - 1}:
            factors = coefficients(k, index)
            for byte in (0, 1, size // 2, size - 1):
                value = 0
                for factor, row in zip(factors, mine, strict=True):
                    value ^= multiply(factor, row[byte])
                assert packet[80 + 8 * k + byte] == value


def data_end(path: Path) -> int:
    chunk = json.loads(manifest_text(path.read_bytes())[0])["assets"][-1]["chunk"]
    end: int = chunk["offset"] + chunk["stored_bytes"]
    return end


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bytes_do_not_depend_on_threads_or_on_when_parity_is_added(
    tmp_path: Path, threads: int
) -> None:
    at_once, later = tmp_path / "a.tersor", tmp_path / "b.tersor"
    write_layers(at_once, parity=0.1, threads=threads)
    write_layers(later)
    report = protect(later, 0.1)
    assert later.read_bytes() == at_once.read_bytes()
    assert report.file_bytes == later.stat().st_size
    assert (report.replaced, report.bundle) == (False, later)
    assert protect(later, 0.02).replaced
    assert later.stat().st_size < at_once.stat().st_size
    protect(later, 0.1)
    assert later.read_bytes() == at_once.read_bytes()


def test_everything_but_parity_is_as_without_it(tmp_path: Path) -> None:
    plain, path = tmp_path / "a.tersor", tmp_path / "b.tersor"
    write_layers(plain)
    write_layers(path, parity=0.05)
    geometry = geometry_in(path)
    end = data_end(plain)
    assert path.read_bytes()[:end] == plain.read_bytes()[:end]
    assert read_all(path) == read_all(plain)
    before, after = (json.loads(manifest_text(p.read_bytes())[0]) for p in (plain, path))
    assert after.pop("parity")["offset"] == geometry.offset
    assert after == before
    report = verify(path)
    assert report.ok
    assert report.parity is not None
    assert (report.parity.damaged, report.parity.repairable) == (False, True)
    assert verify(plain).parity is None


def test_padding_before_the_section_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "x.tersor"
    write_tiny(path, parity=0.05)
    whole, data = path.read_bytes(), bytearray(path.read_bytes())
    data[geometry_in(path).offset - 1] = 1
    path.write_bytes(data)
    report = verify(path)
    assert [damage.kind for damage in report.damages] == ["padding"]
    assert "align the parity" in report.damages[0].message
    with pytest.raises(BundleCorruptError, match="not zero"):
        protect(path, 0.05)
    restores(path, whole, data)


def test_manifests_with_parity_follow_the_published_schema(tmp_path: Path) -> None:
    folder = Path(next(iter(package.__path__)))
    schema = json.loads((folder / "manifest.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    path = tmp_path / "x.tersor"
    write_tiny(path, parity=0.5)
    value = json.loads(manifest_text(path.read_bytes())[0])
    assert list(validator.iter_errors(value)) == []
    for wrong in ({"block_bytes": 4097}, {"data_blocks": 0}, {"offset": 64}, {"more": 1}):
        assert list(validator.iter_errors({**value, "parity": {**value["parity"], **wrong}})) != []
    assert list(validator.iter_errors({**value, "parity": None})) != []


def test_the_golden_file(tmp_path: Path) -> None:
    """Read by every later version, and repaired by it."""
    golden, path = (GOLDEN / "v2-parity.tersor").read_bytes(), tmp_path / "x.tersor"
    damaged = bytearray(golden)
    overwrite(damaged, 0, 5000)
    overwrite(damaged, len(golden) - 50, 50)
    restores(path, golden, damaged)
    assert verify(path).ok
    assert hashlib.sha256(golden).hexdigest() == GOLDEN_HASH
    if zstandard.ZSTD_VERSION == (1, 5, 7):
        write_tiny(path, codec="raw", parity=0.05)
        assert path.read_bytes() == golden


# --- manifests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 4097}, "parity begins at offset 4097; expected a multiple of 4096"),
        ({"offset": 1 << 40}, "expected a multiple of 4096 before the manifest"),
        ({"offset": 28672}, "bytes before the manifest belong to no chunk"),
        ({"offset": 4096}, "beyond the manifest at 4096"),
        ({"offset": 0}, "parity begins at offset 0"),
        ({"block_bytes": 5000}, "blocks of 5000 bytes; expected a multiple of 4096"),
        ({"block_bytes": 1 << 17}, "block_bytes of parity of the manifest is 131072"),
        ({"data_blocks": 0}, "data_blocks of parity of the manifest is 0"),
        ({"data_blocks": 252, "parity_blocks": 4}, "at most 255 together"),
        ({"parity_blocks": True}, "parity_blocks of parity of the manifest is a boolean"),
        ({"stripes": 1}, "parity of the manifest has unknown fields: 'stripes'"),
    ],
)
def test_wrong_parity_in_a_manifest(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.tersor"
    write_tiny(path, parity=0.05)
    forge(path, lambda value: value["parity"].update(change))
    refuses(path, message)


@pytest.mark.parametrize("value", [None, [], 5, "5%"])
def test_parity_that_is_no_object(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "x.tersor"
    write_tiny(path, parity=0.05)
    forge(path, lambda manifest: manifest.update(parity=value))
    refuses(path, "parity of the manifest is .*; expected an object", BundleFormatError)
