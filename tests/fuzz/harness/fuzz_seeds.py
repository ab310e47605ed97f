"""Valid bundles that mutation begins with, in memory: golden files, each of their planes, and more.

Most cases begin with a bundle of one plane, which is opened and read in a quarter of the time of a
whole golden file; the whole ones have what one plane lacks: chunks shared between planes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz_forge import Forge, Json, chunks_of
from memory_source import MemorySource
from tiny_bundles import add, manifest_text, noise, symbols, weights, write_tiny, writer

from tersor.bundle.digests import content_digest, digest_bytes
from tersor.bundle.reader import BundleReader

GOLDEN = Path(__file__).resolve().parents[2] / "bundle" / "golden"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A valid bundle, taken apart."""

    name: str
    data: bytes
    manifest_offset: int
    text: bytes  # the manifest's JSON

    @property
    def body(self) -> bytes:
        """Everything before the manifest."""
        return self.data[: self.manifest_offset]

    @property
    def value(self) -> Json:
        """The manifest, parsed anew: the caller's to change."""
        value: Json = json.loads(self.text)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """All of them; made once a process."""

    whole: tuple[Seed, ...]
    small: tuple[Seed, ...]  # of one plane each
    protected: tuple[Seed, ...]  # with parity

    @classmethod
    def load(cls, folder: Path) -> Seeds:
        """Reads the golden files, and writes into `folder` what they lack."""
        whole = [_seed(path.name, path.read_bytes()) for path in sorted(GOLDEN.glob("*.tersor"))]
        path = folder / "seed.tersor"
        write_tiny(path)
        whole.append(_seed("tiny", path.read_bytes()))
        path.unlink()
        with writer(path, parity=0.2) as target:
            add(target, "t0", "u8", noise(20_000))
            add(target, "t1", "bf16", weights((64, 64)))
            add(target, "t2", "u4", symbols("u4", (31, 33)))
            target.commit()
        protected = _seed("protected", path.read_bytes())
        path.unlink()
        forge = Forge()
        small = [one for seed in whole for one in _planes(seed, forge)]
        return cls(
            whole=(*whole, protected),
            small=tuple({one.data: one for one in small}.values()),
            protected=(protected, *(seed for seed in whole if b'"parity":' in seed.text)),
        )

    def pick(self, rng: Random) -> Seed:
        """A small one in seven of eight cases."""
        return rng.choice(self.small if rng.random() < 0.875 else self.whole)


def _seed(name: str, data: bytes) -> Seed:
    text, footer = manifest_text(data)
    return Seed(name=name, data=data, manifest_offset=footer.manifest_offset, text=text)


def _planes(seed: Seed, forge: Forge) -> list[Seed]:
    """A bundle for each plane of a bundle, with its assets, and with a digest that is right."""
    with BundleReader.open(MemorySource(seed.data), threads=1) as reader:
        assets = [digest_bytes(reader.read_asset(a.name)) for a in reader.manifest.assets]
    result = []
    for number, plane in enumerate(seed.value["planes"]):
        value = seed.value
        value.pop("parity", None)
        user = next(
            tensor
            for tensor in value["tensors"]
            if any(used["plane"] == number for used in tensor["planes"])
        )
        user["planes"] = [{"name": "values", "plane": 0}]
        value["planes"] = [plane]
        value["tensors"] = [user]
        value["groups"] = [{"name": "embedding", "tensors": [user["name"]]}]
        value["digest"] = content_digest([plane["digest"], *assets])
        stored = {
            chunk["offset"]: seed.data[chunk["offset"] : chunk["offset"] + chunk["stored_bytes"]]
            for chunk in chunks_of(value)
        }
        body = forge.lay_out(value, stored)
        data = forge.bundle(body, json.dumps(value).encode())
        result.append(_seed(f"{seed.name} plane {number}", data))
    return result
