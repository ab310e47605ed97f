"""Mutations of a manifest: of its text, of its structure, and of what its fields say together."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

from fuzz_forge import Json

from tersor.bundle.codecs import CODEC_NAMES
from tersor.bundle.filters import FILTERS
from tersor.bundle.manifest import DTYPES

_INTEGERS = (
    0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 255, 4095, 4096, 4097, 65535, 65536, 1 << 20, (1 << 20) + 1,
    1 << 30, (1 << 30) + 1, 1 << 31, 1 << 32, 1 << 38, 1 << 40, (1 << 40) + 1, 1 << 48, 1 << 53,
    (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 200, -1, -(1 << 63), -(1 << 70),
)  # fmt: skip
_DIMENSIONS = (0, 0, 0, 1, 1, 2, 3, 16, 1 << 20, 1 << 32, 1 << 39, 1 << 40)
_OTHERS: tuple[Any, ...] = (
    None, True, False, 0.5, -0.0, 1e308, "", "x", "\u0000", "\u001b[2J", "\u202e", "\u00e9" * 300,
    "f" * 64, "0" * 16, "F" * 16, "../x", "a/b", "raw", [], [None], [[]], {}, {"x": 1},
    *CODEC_NAMES, *FILTERS, *DTYPES,
)  # fmt: skip
# Where a walk begins: chunks, planes and tensors are most of the format.
_ROOTS = ("planes", "planes", "planes", "tensors", "tensors", "assets", "groups", "program", "")
_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]*")
_MEMBER = re.compile(rb'"[a-z_]+":("[^"\\]*"|[0-9.]+|true|false|null|\[[^\[\]{}]*\]),')
_TOKENS = (
    b"0", b"-1", b"1e999", b"NaN", b"Infinity", b"null", b"[]", b"{}", b'""', b'"\\ud800"', b"\\",
    b'"', b",", b"]", b"}", b"[" * 2000, b'{"x":' * 40, b"9" * 5000, b"1" * 20, b"\xff",
    b"\xc0\x80", b"\xef\xbb\xbf", b"\x00", b"/**/", b" " * 1000, b"0x1", b"01",
    b"1.", b"[0" + b",0" * 3000 + b"]",
)  # fmt: skip


def mutate_text(rng: Random, text: bytes) -> bytes:
    """Changes tokens of JSON text; it mostly stays JSON."""
    result = text
    for _ in range(1 if rng.random() < 0.6 else rng.randint(2, 3)):
        pattern = _NUMBER if rng.random() < 0.5 else _MEMBER
        # From a random place on, so that not all matches need be found.
        match = pattern.search(result, rng.randrange(len(result))) if result else None
        if match is None or rng.random() < 0.2:
            at = rng.randint(0, len(result))
            result = result[:at] + rng.choice(_TOKENS) + result[at + rng.randint(0, 4) :]
        elif pattern is _MEMBER:
            twice = match.group() * (2 if rng.random() < 0.6 else 0)
            result = result[: match.start()] + twice + result[match.end() :]
        else:
            number = (
                str(rng.choice(_INTEGERS)).encode() if rng.random() < 0.6 else rng.choice(_TOKENS)
            )
            result = result[: match.start()] + number + result[match.end() :]
    return result


def mutate_structure(rng: Random, value: Json) -> None:
    """One to three changes of a parsed manifest, in place."""
    for _ in range(1 if rng.random() < 0.6 else rng.randint(2, 3)):
        if rng.random() < 0.25:
            _change_plane(rng, value)
        else:
            _change_any(rng, value)


def _change_any(rng: Random, value: Json) -> None:
    """Changes one value, anywhere."""
    name = rng.choice(_ROOTS)
    container: Any = value.get(name) if name else value
    if not isinstance(container, list | dict) or not container:
        container = value
    while True:
        keys = list(container) if isinstance(container, dict) else range(len(container))
        key = rng.choice(keys)
        inner = container[key]
        if not isinstance(inner, list | dict) or not inner or rng.random() < 0.15:
            break
        container = inner
    kind = rng.randrange(8)
    if kind <= 2:
        container[key] = _nudged(rng, inner)
    elif kind == 3:
        container[key] = _hostile(rng)
    elif kind == 4:
        del container[key]
    elif kind == 5:
        other = rng.choice(keys)
        container[key], container[other] = container[other], inner
    elif isinstance(container, list):
        container.insert(rng.randint(0, len(container)), _copy(inner))
    elif kind == 6:
        container["x" if rng.random() < 0.5 else "table"] = _copy(inner)
    else:
        container[key] = _copy(container[rng.choice(keys)])


def _nudged(rng: Random, inner: Any) -> Any:
    """Near to what it was."""
    if isinstance(inner, bool) or inner is None:
        return rng.choice((None, True, False, 0, 1))
    if isinstance(inner, int):
        return rng.choice(
            (inner - 1, inner + 1, -inner, 2 * inner, inner // 2, inner ^ (1 << rng.randrange(48)),
             inner + 4096, inner - 4096, float(inner), str(inner), rng.choice(_INTEGERS))
        )  # fmt: skip
    if isinstance(inner, str) and inner:
        at = rng.randrange(len(inner))
        return inner[:at] + rng.choice(("", "0", "f", "/", "\n", "\u00e9")) + inner[at + 1 :]
    if isinstance(inner, list) and inner:
        return rng.choice((inner[1:], inner[:-1], inner[::-1], inner * 2, inner * 20, inner[0]))
    return _hostile(rng)


def _hostile(rng: Random) -> Any:
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(_INTEGERS)
    if kind < 0.93:
        return rng.choice(_OTHERS)
    if kind < 0.96:
        return [0] * rng.choice((17, 257, 4097, 70_000))
    deep: Any = 0
    for _ in range(rng.choice((2, 31, 32, 33, 34, 600))):
        deep = [deep]
    return deep


def _change_plane(rng: Random, value: Json) -> None:
    """Changes what a plane is, in a way that may well be allowed."""
    planes = value.get("planes")
    if not isinstance(planes, list) or not planes or not isinstance(planes[0], dict):
        return
    empty = [p for p in planes if isinstance(p, dict) and _without_chunks(p)]
    plane = rng.choice(empty if empty and rng.random() < 0.5 else planes)
    if not isinstance(plane, dict):
        return
    kind = rng.randrange(5)
    if kind == 0 or plane in empty:
        plane["shape"] = [rng.choice(_DIMENSIONS) for _ in range(rng.randint(0, 5))]
        plane["rows_per_chunk"] = rng.choice((1, 2, 1 << 20, 1 << 40))
        if rng.random() < 0.3:
            plane["dtype"] = rng.choice(tuple(DTYPES))
    elif kind == 1:
        plane["dtype"] = rng.choice(tuple(DTYPES))
    elif kind == 2:
        plane["filter"] = rng.choice(tuple(FILTERS))
    elif kind == 3 and isinstance(plane.get("shape"), list):
        _reshape(rng, plane)
    else:
        plane["rows_per_chunk"] = rng.choice(_INTEGERS)


def _reshape(rng: Random, plane: Json) -> None:
    """Another shape of as many symbols, if the plane has one block."""
    shape = [dim for dim in plane["shape"] if isinstance(dim, int)]
    extra = rng.randrange(4)
    if extra == 0:
        plane["shape"] = [*shape, *[1] * rng.randint(1, 15)]
    elif extra == 1:
        plane["shape"] = [*[1] * rng.randint(1, 3), *shape]
    elif len(shape) > 1:
        plane["shape"] = [shape[0] * shape[1], *shape[2:]]
    plane["rows_per_chunk"] = rng.choice((1, plane["shape"][0] if plane["shape"] else 1, 1 << 40))


def _without_chunks(plane: Json) -> bool:
    streams = plane.get("streams")
    return isinstance(streams, list) and not any(
        isinstance(stream, dict) and stream.get("chunks") for stream in streams
    )


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value)) if isinstance(value, list | dict) else value
