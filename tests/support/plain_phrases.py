"""LZ78 and LZW after `docs/format.md` in plain Python: compiled loops are held against these."""

from __future__ import annotations

CODES = 1 << 16


class DamagedError(Exception):
    """The stored bytes are not what an encoder writes for that many raw bytes."""


def lz78_encode(data: bytes) -> bytes:
    phrases: dict[bytes, int] = {b"": 0}
    fields: list[tuple[int, int]] = []
    start = 0
    while start < len(data):
        end = start + 1
        while data[start:end] in phrases and end < len(data):
            end += 1
        width = (len(phrases) - 1).bit_length()
        fields += [(phrases[data[start : end - 1]], width), (data[end - 1], 8)]
        if len(phrases) < CODES:
            phrases.setdefault(data[start:end], len(phrases))
        start = end
    return _packed(fields)


def lz78_decode(stored: bytes, raw_bytes: int) -> bytes:
    bits = _Bits(stored)
    phrases = [b""]
    out = bytearray()
    while len(out) < raw_bytes:
        code = bits.take((len(phrases) - 1).bit_length())
        last = bits.take(8)
        if code >= len(phrases):
            raise DamagedError
        out += (phrase := phrases[code] + bytes([last]))
        if len(phrases) < CODES:
            phrases.append(phrase)
    return _whole(out, bits, raw_bytes)


def lzw_encode(data: bytes) -> bytes:
    phrases = {bytes([byte]): byte for byte in range(256)}
    fields: list[tuple[int, int]] = []
    start = 0
    while start < len(data):
        end = start + 1
        while data[start : end + 1] in phrases and end < len(data):
            end += 1
        fields.append((phrases[data[start:end]], (len(phrases) - 1).bit_length()))
        if len(phrases) < CODES:
            phrases.setdefault(data[start : end + 1], len(phrases))
        start = end
    return _packed(fields)


def lzw_decode(stored: bytes, raw_bytes: int) -> bytes:
    bits = _Bits(stored)
    phrases = [bytes([byte]) for byte in range(256)]
    before: bytes | None = None  # extended by the first byte of the phrase that follows
    out = bytearray()
    while len(out) < raw_bytes:
        grows = before is not None and len(phrases) < CODES
        code = bits.take((len(phrases) + grows - 1).bit_length())
        if grows:
            assert before is not None
            first = phrases[code] if code < len(phrases) else before
            phrases.append(before + first[:1])
        if code >= len(phrases):
            raise DamagedError
        out += (before := phrases[code])
    return _whole(out, bits, raw_bytes)


def _packed(fields: list[tuple[int, int]]) -> bytes:
    """Values of the given widths, each from its lowest bit on."""
    text = "".join(f"{value:0{width}b}"[::-1] for value, width in fields if width)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8))


class _Bits:
    """Takes values out of bytes, from the lowest bit of each on."""

    def __init__(self, stored: bytes) -> None:
        self.left = "".join(f"{byte:08b}"[::-1] for byte in stored)
        self.at = 0

    def take(self, width: int) -> int:
        bits = self.left[self.at : self.at + width]
        if len(bits) < width:
            raise DamagedError
        self.at += width
        return int(bits[::-1] or "0", 2)


def _whole(out: bytearray, bits: _Bits, raw_bytes: int) -> bytes:
    rest = bits.left[bits.at :]
    if len(out) > raw_bytes or len(rest) > 7 or "1" in rest:
        raise DamagedError
    return bytes(out)
