"""Targets that forge whole files: bytes, frame, manifest, chunks, and two of these together."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

from fuzz_bytes import damage
from fuzz_forge import Forge, Json, chunks_of
from fuzz_json import mutate_structure, mutate_text
from fuzz_open import examine
from fuzz_seeds import Seed, Seeds
from fuzz_target import Target

from tersor.bundle.codecs import CODEC_NAMES
from tersor.bundle.container import FOOTER_BYTES, HEADER_BYTES
from tersor.bundle.digests import checksum
from tersor.bundle.filters import FILTERS

_FOOTER = struct.Struct("<QQQQ32sII8s")
_HEADER = struct.Struct("<8sII48s")
_FIELDS = (0, 1, 2, 63, 64, 65, 80, 143, 144, 4096, (1 << 26) + 1, (1 << 27) + 1, 1 << 32, 1 << 48)
# A skippable frame, and an empty one that declares no content size.
_SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
_UNSIZED = b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00"


class _Files(Target):
    """What targets of whole files share."""

    def __init__(self, seeds: Seeds, folder: Path) -> None:
        del folder
        self._seeds = seeds
        self._forge = Forge()

    def _examine(self, data: bytes, rng: Random, share: float, *, changed: bool = False) -> str:
        self.input = data
        return examine(data, rng, verify_share=share, changed=changed)


class RawBytes(_Files):
    """A file that was damaged, cut or put together; no digest is put right."""

    name = "raw bytes"
    weight = 16

    def run(self, rng: Random) -> str:
        seed = self._seeds.pick(rng)
        kind = rng.random()
        if kind < 0.1:
            # The part of another file, as long as it is.
            other = rng.choice(self._seeds.small).data
            start, end = sorted((rng.randrange(len(other)), rng.randrange(len(other))))
            mutated = bytearray(seed.data)
            mutated[start:end] = other[start:end]
        elif kind < 0.5:
            # In what is stored, not in the zeros that align it.
            mutated = bytearray(seed.data)
            chunk = rng.choice(list(chunks_of(seed.value)))
            at, end = chunk["offset"], chunk["offset"] + chunk["stored_bytes"]
            mutated[at:end] = damage(rng, mutated[at:end], resize=rng.random() < 0.1)
        else:
            mutated = damage(rng, seed.data, resize=rng.random() < 0.5)
        data = bytes(mutated)
        return self._examine(data, rng, 0.25, changed=_means(data) != _means(seed.data))


def _means(data: bytes) -> bytes:
    """A file without its version numbers: of two that a reader knows, either will do."""
    end = len(data) - 16
    return data[:8] + data[12:end] + data[end + 4 :]


class Frame(_Files):
    """Header and footer: fields that contradict each other, behind digests that match."""

    name = "header, footer"
    weight = 8

    def run(self, rng: Random) -> str:
        seed = self._seeds.pick(rng)
        kind = rng.randrange(4)
        if kind == 0:
            data = _with_field(rng, seed.data, _HEADER, 0)
        elif kind == 1:
            data = _with_field(rng, seed.data, _FOOTER, len(seed.data) - FOOTER_BYTES)
        elif kind == 2:
            data = self._other_manifest(rng, seed)
        else:
            # Bytes between chunks and manifest, or too few of them; the text says as it did.
            body = bytearray(seed.body)
            if rng.random() < 0.5:
                body += rng.randbytes(rng.choice((1, 64, 4096)))
            else:
                del body[-rng.randint(1, len(body)) :]
            data = self._forge.bundle(body, seed.text)
        return self._examine(data, rng, 0.1)

    def _other_manifest(self, rng: Random, seed: Seed) -> bytes:
        stored = seed.data[seed.manifest_offset : -FOOTER_BYTES]
        size = len(seed.text)
        kind = rng.randrange(5)
        if kind == 0:
            size = max(0, size + rng.choice((-size, -1, 1, size, 1 << 20, 1 << 26)))
        elif kind == 1:
            stored = rng.choice((_SKIPPABLE + stored, stored + stored, stored + _UNSIZED))
        elif kind == 2:
            stored, size = rng.choice(((_SKIPPABLE, 0), (_UNSIZED, 0), (b"", 0), (seed.text, size)))
        elif kind == 3:
            stored = bytes(damage(rng, stored, resize=True))
        else:
            text = rng.choice((b"{}", b"[]", b"null", b'"x"', b"1", b" ", b"\x00", seed.text * 2))
            return self._forge.bundle(seed.body, text)
        return self._forge.with_stored(seed.body, stored, size)


def _with_field(rng: Random, data: bytes, form: struct.Struct, offset: int) -> bytes:
    """Another value of one field, within its range."""
    fields = list(form.unpack_from(data, offset))
    index = rng.randrange(len(fields))
    old = fields[index]
    if isinstance(old, bytes):
        fields[index] = bytes(damage(rng, old, resize=False))
    else:
        number = rng.choice((old + 1, old - 1, old ^ (1 << rng.randrange(32)), *_FIELDS))
        # Of 64 bits are the first four fields of a footer, and no others.
        fields[index] = number % (1 << (64 if len(fields) == 8 and index < 4 else 32))
    return data[:offset] + form.pack(*fields) + data[offset + form.size :]


class ManifestText(_Files):
    """Any bytes as a manifest's text."""

    name = "manifest text"
    weight = 13

    def run(self, rng: Random) -> str:
        seed = self._seeds.pick(rng)
        if rng.random() < 0.4:
            text = bytes(damage(rng, seed.text, resize=True))
        else:
            text = mutate_text(rng, seed.text)
        return self._examine(self._forge.bundle(seed.body, text), rng, 0.1)


class ManifestStructure(_Files):
    """Any values in a manifest."""

    name = "manifest structure"
    weight = 20

    def run(self, rng: Random) -> str:
        seed = self._seeds.pick(rng)
        value = seed.value
        mutate_structure(rng, value)
        return self._examine(self._forge.bundle(seed.body, json.dumps(value).encode()), rng, 0.2)


class Chunks(_Files):
    """Any bytes as a chunk or a table, behind their checksum; also under another name."""

    name = "chunks"
    weight = 18

    def run(self, rng: Random) -> str:
        seed = self._seeds.pick(rng)
        value = seed.value
        stored = mutate_chunks(rng, seed, value)
        body = self._forge.lay_out(value, stored)
        data = self._forge.bundle(body, json.dumps(value).encode())
        return self._examine(data, rng, 0.5)


def mutate_chunks(rng: Random, seed: Seed, value: Json) -> dict[int, bytes]:
    """Changes a chunk, or two, or what a plane calls its own; returns what is stored by offset."""
    value.pop("parity", None)
    chunks = list(chunks_of(value))
    stored = {
        chunk["offset"]: seed.data[chunk["offset"] : chunk["offset"] + chunk["stored_bytes"]]
        for chunk in chunks
    }
    for _ in range(1 if rng.random() < 0.8 else 2):
        chunk = rng.choice(chunks)
        offset = chunk["offset"]
        kind = rng.random()
        if kind < 0.08:
            # The stored bytes of another chunk.
            stored[offset] = stored[rng.choice(chunks)["offset"]]
        elif kind < 0.9:
            resize = rng.random() < 0.25
            stored[offset] = bytes(damage(rng, stored[offset] or b"x", resize=resize)) or b"\x00"
        if kind > 0.85:
            codec = rng.choice(CODEC_NAMES)
            for same in chunks:
                if same["offset"] == offset:
                    same["codec"] = codec
    if rng.random() < 0.05 and value["planes"]:
        rng.choice(value["planes"])["filter"] = rng.choice(tuple(FILTERS))
    return stored


class Pairs(_Files):
    """Two kinds of mutation together."""

    name = "two mutations"
    weight = 8

    def run(self, rng: Random) -> str:
        seed = self._seeds.pick(rng)
        value = seed.value
        body: bytes | bytearray = seed.body
        if rng.random() < 0.5:
            body = self._forge.lay_out(value, mutate_chunks(rng, seed, value))
        else:
            body = damage(rng, body, resize=False)
            _check_anew(value, body)
        if rng.random() < 0.7:
            mutate_structure(rng, value)
        text = json.dumps(value).encode()
        if rng.random() < 0.3:
            text = mutate_text(rng, text)
        data = self._forge.bundle(body, text)
        if rng.random() < 0.15:
            data = bytes(damage(rng, data, resize=True))
        return self._examine(data, rng, 0.2)


def _check_anew(value: Json, body: bytes | bytearray) -> None:
    """Puts right the checksums of what stands in `body`."""
    for chunk in chunks_of(value):
        start = max(HEADER_BYTES, chunk["offset"])
        data = bytes(body[start : start + chunk["stored_bytes"]])
        chunk["checksum"] = f"{checksum(data):016x}"
