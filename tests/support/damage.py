"""Bundles to damage, and ways to do it: by bytes, or by the blocks and packets of their parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_bundles import add, symbols, weights, writer

from tersor.bundle.codecs import ZstdCodec
from tersor.bundle.errors import BundleParityError
from tersor.bundle.parity import ParityGeometry
from tersor.bundle.parity_survey import geometry_of
from tersor.bundle.reader import read_manifest
from tersor.bundle.repair import repair
from tersor.bundle.sources import FileSource


def write_layers(path: Path, **changes: Any) -> None:
    """A bundle of 3 MB whose layers are groups of their own."""
    with writer(path, **changes) as target:
        for layer in range(3):
            name = f"layers.{layer}"
            add(target, name, "i8", symbols("i8", (1000, 1000), seed=layer), group=name)
        add(target, "head", "bf16", weights((64, 128)), group="head")
        target.add_asset("tokenizer.json", b'{"model": "tiny"}', "application/json")
        target.commit()


def geometry_in(path: Path) -> ParityGeometry:
    """The geometry of a whole bundle's parity."""
    with FileSource.opened(path) as file:
        geometry = geometry_of(file, read_manifest(file, ZstdCodec()))
    assert geometry is not None
    return geometry


def overwrite(data: bytearray, start: int, size: int) -> None:
    """Changes every byte of a range."""
    for at in range(start, min(start + size, len(data))):
        data[at] ^= 0xA5


def damage_block(data: bytearray, geometry: ParityGeometry, block: int, at: int = 0) -> None:
    """Changes one byte of a data block; `at` is taken modulo its length in the file."""
    places = [
        offset + byte
        for offset, size in geometry.block_pieces(block)
        for byte in (range(size) if at else (0,))
    ]
    data[places[at % len(places)]] ^= 0x40


def damage_packet(data: bytearray, geometry: ParityGeometry, place: int, at: int = 0) -> None:
    """Changes one byte of a packet."""
    data[geometry.packet_offset(place) + at % geometry.packet_bytes] ^= 0x40


def restores(path: Path, whole: bytes, damaged: bytes | bytearray) -> None:
    """Asserts that a damaged file is repaired in its place, with nothing left beside it."""
    path.write_bytes(damaged)
    report = repair(path)
    assert path.read_bytes() == whole
    assert (report.output, report.file_bytes) == (path.resolve(), len(whole))
    assert list(path.parent.iterdir()) == [path]


def refuses_repair(path: Path, damaged: bytes | bytearray, message: str) -> BundleParityError:
    """Asserts that repair refuses a damaged file with `message`, and leaves it as it is."""
    path.write_bytes(damaged)
    with pytest.raises(BundleParityError, match=message) as caught:
        repair(path)
    assert path.read_bytes() == damaged
    assert list(path.parent.iterdir()) == [path]
    return caught.value
