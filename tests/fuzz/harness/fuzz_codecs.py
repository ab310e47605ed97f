"""Target: the codecs alone, on stored bytes, tables and sizes that do not fit each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from fuzz_bytes import damage
from fuzz_entropy import EntropyChunk
from fuzz_forge import Json
from fuzz_open import ACCEPTED, Finding, refusal
from fuzz_seeds import Seed, Seeds
from fuzz_target import Target
from tiny_bundles import noise, weights

from tersor.bundle.codecs import MAX_RATIOS, StreamShape, default_codecs
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCorruptError

_GUARD = 64
_FILL = 0xA5
_MAX_RAW_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """A valid chunk."""

    codec: str
    stored: bytes
    raw_bytes: int
    table: bytes | None = None


class Codecs(Target):
    """Decodes into the middle of guarded memory: no byte around the output may change."""

    name = "codecs"
    weight = 16

    def __init__(self, seeds: Seeds, folder: Path) -> None:
        del folder
        self._codecs = default_codecs()
        found = {sample for seed in seeds.small for sample in self._of_seed(seed)}
        found |= set(self._long())
        samples = sorted(found, key=lambda s: (s.codec, s.raw_bytes, s.stored, s.table or b""))
        self.samples = {
            name: [sample for sample in samples if sample.codec == name] for name in self._codecs
        }
        self._tables = sorted({sample.table for sample in samples if sample.table is not None})

    def run(self, rng: Random) -> str:
        name = rng.choice(("lz4", "zstd", "lz78", "lzw", "huffman", "rans", "rans"))
        sample = rng.choice(self.samples[name])
        stored, table, raw_bytes = sample.stored, sample.table, sample.raw_bytes
        kind = rng.random()
        if kind < 0.4 and name in {"huffman", "rans"}:
            chunk = EntropyChunk.take_apart(stored, raw_bytes, table, rans=name == "rans")
            for _ in range(rng.choice((1, 1, 2))):
                chunk.mutate(rng)
            stored = chunk.put_together()
        elif kind < 0.75:
            stored = bytes(damage(rng, stored, resize=rng.random() < 0.3))
        if 0.7 < kind < 0.9:
            change = rng.choice((-2, -1, 1, 2, raw_bytes, -(raw_bytes // 2), 65536))
            raw_bytes = min(max(1, raw_bytes + change), _MAX_RAW_BYTES)
        if kind > 0.85 or rng.random() < 0.1:
            table = self._other_table(rng, table)
        if rng.random() < 0.02:
            name = rng.choice(tuple(self._codecs))
        # What no manifest may declare never reaches a codec.
        if not len(stored) <= raw_bytes <= len(stored) * MAX_RATIOS[name]:
            raw_bytes = min(max(raw_bytes, len(stored)), len(stored) * MAX_RATIOS[name])
            if raw_bytes == 0:
                return "no chunk"
        self.input = stored
        return self._decode(rng, name, stored, raw_bytes, table)

    def _decode(
        self, rng: Random, name: str, stored: bytes, raw_bytes: int, table: bytes | None
    ) -> str:
        # Chunks begin anywhere in what was read; planes' parts where a symbol may.
        skip = rng.randrange(8)
        source = np.frombuffer(bytes(skip) + stored, np.uint8)[skip:]
        model = None if table is None else np.frombuffer(table, np.uint8)
        memory = np.full(raw_bytes + 2 * _GUARD, _FILL, np.uint8)
        start = _GUARD + (1 if rng.random() < 0.05 else 0)
        out = memory[start : start + raw_bytes]
        codec = self._codecs[name]
        error: BundleCorruptError | None = None
        try:
            codec.decode_into(source, out, model)
        except BundleCorruptError as caught:
            error = caught
        if (memory[:start] != _FILL).any() or (memory[start + raw_bytes :] != _FILL).any():
            raise Finding(f"{name} wrote outside of its output")
        if error is not None:
            return refusal(error)
        if rng.random() < 0.1:
            again = codec.decode(source, raw_bytes, model)
            if again.size != raw_bytes or again.tobytes() != out.tobytes():
                raise Finding(f"{name} decodes to other bytes the second time")
        return ACCEPTED

    def _other_table(self, rng: Random, table: bytes | None) -> bytes | None:
        kind = rng.random()
        if table is None or kind < 0.3:
            return rng.choice((None, *self._tables))
        return bytes(damage(rng, table, resize=kind < 0.5))

    def _of_seed(self, seed: Seed) -> list[_Sample]:
        result = []
        for plane in seed.value["planes"]:
            for stream in plane["streams"]:
                table = None
                if "table" in stream:
                    chunk = stream["table"]
                    codec = self._codecs[chunk["codec"]]
                    stored = np.frombuffer(_stored(seed, chunk), np.uint8)
                    table = codec.decode(stored, chunk["raw_bytes"]).tobytes()
                result += [
                    _Sample(
                        codec=chunk["codec"],
                        stored=_stored(seed, chunk),
                        raw_bytes=chunk["raw_bytes"],
                        table=table,
                    )
                    for chunk in stream["chunks"]
                ]
        return result

    def _long(self) -> list[_Sample]:
        """Chunks of several blocks, with patches, wide symbols, classes, and a full dictionary."""
        peaked = (weights((300, 256), seed=7) >> 7).astype(np.uint8).reshape(-1)
        rare = peaked.copy()
        rare[::9973] = noise(rare[::9973].size, seed=8)
        wide = weights((70, 512), seed=9).reshape(-1).view(np.uint8)
        small = StreamShape(row_symbols=256, column_classes=True)
        inputs: list[tuple[str, ByteArray, StreamShape]] = []
        for name in self._codecs:
            inputs += [(name, peaked, small), (name, rare, StreamShape())]
            inputs.append((name, rare[:9999], StreamShape()))
        for name in ("huffman", "rans"):
            inputs.append((name, wide, StreamShape(symbol_bytes=2, row_symbols=512)))
            inputs.append((name, wide[:3000], StreamShape(symbol_bytes=2)))
        for name in ("lz78", "lzw"):
            inputs.append((name, noise(200_000, seed=10) >> np.uint8(3), StreamShape()))
        return [
            _Sample(codec=name, stored=stored, raw_bytes=data.size)
            for name, data, shape in inputs
            for encode in self._codecs[name].encoders
            if len(stored := encode(np.ascontiguousarray(data), shape, None)) <= data.size
        ]


def _stored(seed: Seed, chunk: Json) -> bytes:
    return seed.data[chunk["offset"] : chunk["offset"] + chunk["stored_bytes"]]
