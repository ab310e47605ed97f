"""Mutations of bytes: what storage, transfers and forgers do to them."""

from __future__ import annotations

from random import Random

# Little-endian numbers at which arithmetic goes wrong.
_NUMBERS = (
    0, 1, 2, 3, 12, 15, 16, 31, 32, 33, 127, 128, 255, 256, 4095, 4096, 4097, 32767, 32768, 65535,
    65536, 65537, (1 << 20) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 40) + 1,
    (1 << 48) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
_MAX_RANGE = 64


def damage(rng: Random, data: bytes | bytearray, *, resize: bool) -> bytearray:
    """One to four mutations of `data`, which is not empty; the length stays unless `resize`."""
    result = bytearray(data)
    for _ in range(1 if rng.random() < 0.5 else rng.randint(2, 4)):
        if resize and (not result or rng.random() < 0.3):
            _resize(rng, result)
        elif result:
            _overwrite(rng, result)
    return result


def _place(rng: Random, size: int) -> int:
    """Anywhere; as often in the first 32 bytes, where headers are, or in the last."""
    kind = rng.random()
    if kind < 0.3:
        return rng.randrange(min(size, 32))
    if kind < 0.4:
        return size - 1 - rng.randrange(min(size, 16))
    return rng.randrange(size)


def _overwrite(rng: Random, data: bytearray) -> None:
    size = len(data)
    at = _place(rng, size)
    kind = rng.randrange(6)
    if kind <= 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[at] = rng.randrange(256)
    elif kind == 3:
        width = rng.choice((1, 2, 4, 8))
        at -= at % width if rng.random() < 0.8 else 0
        number = rng.choice(_NUMBERS) + rng.randint(-1, 1)
        part = (number % (1 << (8 * width))).to_bytes(width, "little")[: size - at]
        data[at : at + len(part)] = part
    elif kind == 4:
        length = min(rng.randint(1, _MAX_RANGE), size - at)
        data[at : at + length] = rng.randbytes(length) if rng.random() < 0.5 else bytes(length)
    else:
        length = min(rng.randint(1, _MAX_RANGE), size)
        source = rng.randint(0, size - length)
        at = rng.randint(0, size - length)
        data[at : at + length] = data[source : source + length]


def _resize(rng: Random, data: bytearray) -> None:
    size = len(data)
    at = rng.randint(0, size)
    length = rng.randint(1, _MAX_RANGE)
    kind = rng.randrange(6)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        del data[at : at + length]
    elif kind == 2:
        data[at:at] = rng.randbytes(length)
    elif kind == 3:
        data[at:at] = data[at : at + length]
    elif kind == 4:
        data += bytes(rng.choice((1, 2, 3, 4, 80, 4096)))
    else:
        data[0:0] = rng.randbytes(rng.choice((1, 4, 64)))
