"""Target: parity that lies, and files that it is to repair."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from random import Random

from fuzz_bytes import damage
from fuzz_forge import Forge
from fuzz_json import mutate_structure
from fuzz_open import ACCEPTED, Finding, refusal
from fuzz_seeds import Seed, Seeds
from fuzz_target import Target
from memory_source import MemorySource

from tersor.bundle.digests import checksum
from tersor.bundle.errors import BundleError
from tersor.bundle.manifest_json import manifest_from_json
from tersor.bundle.parity import PACKET_CHECKSUM_BYTES, PACKET_HEADER_BYTES, ParityGeometry
from tersor.bundle.parity_survey import find_parity
from tersor.bundle.repair import repair
from tersor.bundle.verify import verify


class Parity(Target):
    """Packets forged behind their checksums, damaged data, forged manifests; then repair.

    A repair syncs files and reads the bundle some times, so that there are few of these.
    """

    name = "parity"
    weight = 1.5

    def __init__(self, seeds: Seeds, folder: Path) -> None:
        self._seeds = seeds.protected
        self._forge = Forge()
        self._geometries = [_geometry(seed) for seed in self._seeds]
        self._path = folder / "x.tersor"

    def run(self, rng: Random) -> str:
        index = rng.randrange(len(self._seeds))
        seed, geometry = self._seeds[index], self._geometries[index]
        data = bytearray(seed.data)
        forged = rng.random() < 0.15
        if forged:
            value = seed.value
            if rng.random() < 0.5:
                field = rng.choice(tuple(value["parity"]))
                number = value["parity"][field]
                value["parity"][field] = rng.choice((number + 1, number - 1, 1, 4096, 65536, 254))
            else:
                mutate_structure(rng, value)
            data = bytearray(self._forge.bundle(seed.body, json.dumps(value).encode()))
        for _ in range(rng.randint(0, 4)):
            _forge_packet(rng, data, geometry, rng.randrange(geometry.packets))
        for _ in range(rng.randint(0, 3)):
            start = rng.randrange(len(data))
            end = min(len(data), start + rng.choice((1, 64, 4096, 9000)))
            data[start:end] = damage(rng, data[start:end], resize=False)
        if rng.random() < 0.2:
            data = damage(rng, data, resize=True) or bytearray(b"x")
        self.input = bytes(data)
        return self._try(seed, geometry, self.input, forged=forged)

    def _try(self, seed: Seed, geometry: ParityGeometry, data: bytes, *, forged: bool) -> str:
        find_parity(MemorySource(data))
        with suppress(BundleError):
            verify(MemorySource(data))
        path = self._path
        path.write_bytes(data)
        try:
            report = repair(path)
        except BundleError as error:
            if path.read_bytes() != data:
                raise Finding("a repair that was refused changed the file") from error
            return refusal(error)
        after = path.read_bytes()
        if report.output is None and after != data:
            raise Finding("a repair that wrote nothing changed the file")
        try:
            found = verify(MemorySource(after))
        except BundleError as error:
            raise Finding("a repaired file is no bundle") from error
        if found.parity is None or found.parity.damaged_blocks or found.parity.lost_stripes:
            raise Finding("a repaired file has damaged blocks")
        whole = seed.data
        # A forged parity block that nothing was restored from may stand.
        same = after[: geometry.offset] == whole[: geometry.offset]
        same = same and after[geometry.manifest_offset :] == whole[geometry.manifest_offset :]
        if not forged and not same:
            raise Finding("a repaired file is another than the one that was protected")
        return ACCEPTED


def _geometry(seed: Seed) -> ParityGeometry:
    manifest = manifest_from_json(seed.text, data_end=seed.manifest_offset)
    assert manifest.parity is not None
    return ParityGeometry.of(manifest.parity, len(seed.data) - seed.manifest_offset)


def _forge_packet(rng: Random, data: bytearray, geometry: ParityGeometry, place: int) -> None:
    """Changes a packet, mostly what it says of itself, and puts its checksum right."""
    start = geometry.packet_offset(place)
    end = start + geometry.packet_bytes - PACKET_CHECKSUM_BYTES
    body = bytes(data[start:end])
    kind = rng.random()
    cut = PACKET_HEADER_BYTES if kind < 0.6 else len(body)
    body = bytes(damage(rng, body[:cut], resize=False)) + body[cut:]
    if kind < 0.1:
        # Another packet's: in a place that is not its own.
        other = geometry.packet_offset(rng.randrange(geometry.packets))
        body = bytes(data[other : other + len(body)])
    stored = checksum(body).to_bytes(PACKET_CHECKSUM_BYTES, "little")
    data[start : end + PACKET_CHECKSUM_BYTES] = body + stored
