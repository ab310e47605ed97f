"""The loops of LZ78 and LZW in machine code; `docs/format.md` defines what they read and write.

The two differ in where the last byte of a phrase comes from: LZ78 stores its 8 bits behind each
code (`literal_bits`), in LZW (0) it is the first byte of the phrase that follows. One loop does
both. All of it stands in one module, because numba's cache does not notice a change in a module
that another one calls.

An entry of the dictionary needs no bytes of its own: each phrase is in the output, from where it
was found to where the next begins. So the decoder keeps one start an entry and copies forwards,
eight bytes at a time, which decodes LZ78 of trained exponents at 1600 MB/s; following links from
each phrase to its prefix, backwards and byte by byte, does 370.
"""

from __future__ import annotations

import numpy as np

from tersor.bundle.codecs.compiled import compiled, inlined
from tersor.bundle.dtypes import ByteArray

# How decoding ends.
DECODED, ENDS_EARLY, UNKNOWN_CODE, TOO_LONG, LEFT_OVER = range(5)

# Bits of the widest code. A full dictionary stays as it is: weights look the same throughout, so
# that starting afresh costs what was learned (chunks of 512 KiB: exponents 35.8 % against 36.5 % in
# LZW, 45.1 % against 45.8 % in LZ78; i8 codes, half of them pruned, 72.1 % against 74.9 % and
# 71.2 % against 71.9 %; in chunks of 4 MiB from 0.5 % less to 5 % more). 14 bits do as well on
# exponents and 4 % worse on i8 codes; 18 bits save 1 % of exponents in chunks of 4 MiB, for tables
# four times the size, which leave the second-level cache.
MAX_WIDTH = 16
_CODES = np.uint64(1 << MAX_WIDTH)
# Phrases that are there from the start: the bytes in LZW, the empty one in LZ78.
_BYTES = np.uint64(256)
_EMPTY_PHRASE = np.uint64(1)

_0, _1, _2, _3, _4, _5, _6, _7, _8 = (np.uint64(n) for n in range(9))
_16, _24, _32, _40, _48, _56 = (np.uint64(n) for n in range(16, 57, 8))

# The encoder's hash table, 2 MiB: a slot is free, or key << 16 | code, where the key is the code
# of a phrase << 8 | the byte that extends it. At most a quarter is in use: on planes a search takes
# 1.03 to 1.19 steps on average and 15 at most. Their limit bounds the time of a byte for data made
# to collide; a phrase that no slot is found for is not found again.
_SLOT_BITS = MAX_WIDTH + 2
_LAST_SLOT = np.uint64((1 << _SLOT_BITS) - 1)
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)  # no key has more than 24 bits
_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio
_HASH_SHIFT = np.uint64(64 - _SLOT_BITS)
_CODE = np.uint64((1 << 16) - 1)
_MAX_STEPS = 32


@compiled
def decode(stored: ByteArray, out: ByteArray, literal_bits: int) -> int:
    """Fills `out`, of at least a byte; returns how it ended. Allocates 256 KiB."""
    literal = np.uint64(literal_bits)
    roots = _EMPTY_PHRASE if literal else _BYTES
    width = _0 if literal else _8
    entries = _CODES - roots
    # Where each phrase found begins in the output, and where the next will. 32 bits do: phrase i
    # has at most i + 1 bytes, so that all entries together have fewer than 2^31.
    starts = np.empty(entries + _1, np.uint32)
    starts[_0] = _0
    stored_bytes, size = np.uint64(stored.size), np.uint64(out.size)
    found = bit = position = _0
    while position < size:
        at, shift = bit >> _3, bit & _7
        bit += width + literal
        if bit > stored_bytes << _3:
            return ENDS_EARLY
        word = _load(stored, at) if at + _4 <= stored_bytes else _load_last(stored, at)
        word >>= shift
        code = word & ((_1 << width) - _1)
        last = np.uint8(code)
        if code >= roots:
            if code - roots >= found:
                return UNKNOWN_CODE
            source = np.uint64(starts[code - roots])
            follower = np.uint64(starts[code - roots + _1])
            end = position + (follower - source)
            if end >= size:
                return TOO_LONG
            if end + _8 <= size:
                while position < end:
                    _copy_8(out, source, position)
                    source += _8
                    position += _8
                position = end
            else:
                position = _copy_last(out, source, position, end)
            # Read after the copy: the newest phrase is followed by the copy's own first byte.
            last = out[follower]
        out[position] = np.uint8(word >> width) if literal else last
        position += _1
        if found < entries:
            found += _1
            starts[found] = position
            if (found + roots - _1) >> width:
                width += _1
    return _ending(stored, bit)


@compiled
def encode(data: ByteArray, stored: ByteArray, literal_bits: int) -> int:
    """Fills `stored`, of `stored_capacity` bytes; returns how many it used. Allocates 2 MiB."""
    literal = np.uint64(literal_bits)
    roots = _EMPTY_PHRASE if literal else _BYTES
    width = _0 if literal else _8
    entries = _CODES - roots
    slots = np.full(_LAST_SLOT + _1, _FREE, np.uint64)
    size = np.uint64(data.size)
    found = bit = prefix = _0
    stored[_0] = _0
    code = _0 if literal else np.uint64(data[_0])
    for at in range(_0 if literal else _1, size):
        byte = np.uint64(data[at])
        key = code << _8 | byte
        slot = key * _HASH >> _HASH_SHIFT
        entry = slots[slot]
        for _ in range(_MAX_STEPS):
            if entry >> _16 == key or entry == _FREE:
                break
            slot = (slot + _1) & _LAST_SLOT
            entry = slots[slot]
        if entry >> _16 == key:
            prefix, code = code, entry & _CODE
            continue
        _write(stored, bit, byte << width | code if literal else code)
        bit += width + literal
        if found < entries:
            if entry == _FREE:
                slots[slot] = key << _16 | (roots + found)
            found += _1
            if (found + roots - _1) >> width:
                width += _1
        code = _0 if literal else byte
    if not literal:
        _write(stored, bit, code)
        bit += width
    elif code:  # the data ends inside a phrase: its prefix and its last byte
        _write(stored, bit, np.uint64(data[size - _1]) << width | prefix)
        bit += width + _8
    return int((bit + _7) >> _3)


def stored_capacity(raw_bytes: int, literal_bits: int) -> int:
    """Bytes that `encode` may fill: a widest code for each raw byte, and what a write clears."""
    return raw_bytes * (MAX_WIDTH + literal_bits) // 8 + 4


@inlined
def _load(stored: ByteArray, at: np.uint64) -> np.uint64:
    """Four bytes, in one load; 24 bits of them are there from any bit of the first."""
    return (
        np.uint64(stored[at])
        | np.uint64(stored[at + _1]) << _8
        | np.uint64(stored[at + _2]) << _16
        | np.uint64(stored[at + _3]) << _24
    )


@compiled
def _load_last(stored: ByteArray, at: np.uint64) -> np.uint64:
    """As `_load`, with zeros for the bytes behind the end."""
    word = shift = _0
    while at < np.uint64(stored.size):
        word |= np.uint64(stored[at]) << shift
        at += _1
        shift += _8
    return word


@inlined
def _copy_8(out: ByteArray, source: np.uint64, target: np.uint64) -> None:
    """Eight bytes, in one load and one store; what is too much is overwritten later."""
    word = (
        np.uint64(out[source])
        | np.uint64(out[source + _1]) << _8
        | np.uint64(out[source + _2]) << _16
        | np.uint64(out[source + _3]) << _24
        | np.uint64(out[source + _4]) << _32
        | np.uint64(out[source + _5]) << _40
        | np.uint64(out[source + _6]) << _48
        | np.uint64(out[source + _7]) << _56
    )
    out[target] = np.uint8(word)
    out[target + _1] = np.uint8(word >> _8)
    out[target + _2] = np.uint8(word >> _16)
    out[target + _3] = np.uint8(word >> _24)
    out[target + _4] = np.uint8(word >> _32)
    out[target + _5] = np.uint8(word >> _40)
    out[target + _6] = np.uint8(word >> _48)
    out[target + _7] = np.uint8(word >> _56)


@compiled
def _copy_last(out: ByteArray, source: np.uint64, target: np.uint64, end: np.uint64) -> np.uint64:
    """Byte by byte, where eight at a time would leave the output."""
    while target < end:
        out[target] = out[source]
        source += _1
        target += _1
    return target


@inlined
def _write(stored: ByteArray, bit: np.uint64, value: np.uint64) -> None:
    """At most 24 bits; clears the rest of the four bytes, which come next."""
    at = bit >> _3
    word = value << (bit & _7) | np.uint64(stored[at])
    stored[at] = np.uint8(word)
    stored[at + _1] = np.uint8(word >> _8)
    stored[at + _2] = np.uint8(word >> _16)
    stored[at + _3] = np.uint8(word >> _24)


@compiled
def _ending(stored: ByteArray, bit: np.uint64) -> int:
    """Whether nothing but the zero bits that fill the last byte stands at `bit` and after."""
    at = bit >> _3
    if bit & _7:
        if stored[at] >> np.uint8(bit & _7):
            return LEFT_OVER
        at += _1
    return DECODED if at == np.uint64(stored.size) else LEFT_OVER
