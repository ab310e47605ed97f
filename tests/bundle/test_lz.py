"""LZ78 and LZW: byte for byte what their plain definitions write and read, whatever the bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import plain_phrases
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_bundles import noise, weights

from tersor.bundle.codecs import BYTES, Lz78Codec, LzwCodec
from tersor.bundle.codecs import phrases_compiled as loops
from tersor.bundle.codecs.phrases import PhraseCodec
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.filters import FILTERS

Encode = Callable[[bytes], bytes]
Decode = Callable[[bytes, int], bytes]

LZ78, LZW = Lz78Codec(), LzwCodec()
CODECS = (LZ78, LZW)
PLAIN: dict[str, tuple[Encode, Decode]] = {
    "lz78": (plain_phrases.lz78_encode, plain_phrases.lz78_decode),
    "lzw": (plain_phrases.lzw_encode, plain_phrases.lzw_decode),
}
GUARD = 64
POISON = 0xA7

both = pytest.mark.parametrize("codec", CODECS, ids=[codec.name for codec in CODECS])


def encode(codec: PhraseCodec, data: bytes) -> bytes:
    (encoder,) = codec.encoders
    return encoder(np.frombuffer(data, np.uint8), BYTES, None)


def decode(codec: PhraseCodec, stored: bytes, raw_bytes: int) -> bytes | None:
    """What `decode_into` makes of a poisoned output between guards; None if it is damage."""
    memory = np.full(raw_bytes + 2 * GUARD, POISON, np.uint8)
    try:
        codec.decode_into(np.frombuffer(stored, np.uint8), memory[GUARD : GUARD + raw_bytes])
    except BundleCorruptError:
        return None
    finally:
        assert (memory[:GUARD] == POISON).all()
        assert (memory[GUARD + raw_bytes :] == POISON).all()
    return memory[GUARD : GUARD + raw_bytes].tobytes()


def plain_decode(codec: PhraseCodec, stored: bytes, raw_bytes: int) -> bytes | None:
    try:
        return PLAIN[codec.name][1](stored, raw_bytes)
    except plain_phrases.DamagedError:
        return None


def check(codec: PhraseCodec, data: bytes) -> None:
    stored = encode(codec, data)
    assert stored == PLAIN[codec.name][0](data)
    assert decode(codec, stored, len(data)) == data
    assert plain_decode(codec, stored, len(data)) == data
    assert len(data) <= len(stored) * codec.max_ratio


def exponents(size: int) -> bytes:
    return FILTERS["float_split"].split("bf16", weights((size,)))[0].tobytes()


@both
@pytest.mark.parametrize("size", [*range(1, 40), 511, 1000, 70001])
def test_as_defined_on_bytes_of_every_kind(codec: PhraseCodec, size: int) -> None:
    row = noise(97).tobytes()
    check(codec, bytes(size))
    check(codec, b"\xff" * size)
    check(codec, (row * (size // 97 + 1))[:size])
    check(codec, exponents(size))
    check(codec, noise(size).tobytes())
    check(codec, (noise(size) & 1).tobytes())


def test_the_examples_of_the_specification() -> None:
    assert encode(LZ78, b"aaaa") == bytes.fromhex("61 c3 08 03")
    assert encode(LZW, b"aaaa") == bytes.fromhex("61 00 c3 00")


@both
def test_a_full_dictionary_stays_as_it_is(codec: PhraseCodec) -> None:
    data = noise(200_000).tobytes()
    longer = data + exponents(30_000) + bytes(20_000) + data[:50_000]
    check(codec, longer)
    # The last phrases repeat what was learned, and each code has the full width.
    width = loops.MAX_WIDTH + codec.literal_bits
    bits = [8 * len(encode(codec, longer[: len(longer) - cut])) for cut in (0, 40_000)]
    phrases = (bits[0] - bits[1]) / width
    assert 40_000 / 3 < phrases < 40_000 / 1.5


@both
@given(st.binary(min_size=1, max_size=300) | st.text("ab", min_size=1).map(str.encode))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_as_defined_on_any_bytes(codec: PhraseCodec, data: bytes) -> None:
    check(codec, data)


@both
@given(st.binary(max_size=60), st.integers(1, 200))
@example(b"a\x01\x02\x04\x08\x10", 21)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_garbage_decodes_as_defined_or_is_damage(
    codec: PhraseCodec, stored: bytes, raw_bytes: int
) -> None:
    assert decode(codec, stored, raw_bytes) == plain_decode(codec, stored, raw_bytes)


@both
@given(st.text("ab", min_size=8, max_size=400), st.data())
@settings(derandomize=True, max_examples=200, deadline=None)
def test_flipped_bits_decode_as_defined_or_are_damage(
    codec: PhraseCodec, text: str, data: st.DataObject
) -> None:
    stored = bytearray(encode(codec, text.encode()))
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    size = len(text) + data.draw(st.integers(-3, 3))
    assert decode(codec, bytes(stored), size) == plain_decode(codec, bytes(stored), size)


@both
def test_flipped_bits_behind_a_full_dictionary(codec: PhraseCodec) -> None:
    data = noise(200_000).tobytes() + bytes(60_000)
    stored = encode(codec, data)
    for at in (1, 20, 300):
        bad = bytearray(stored)
        bad[-at * 7] ^= 0x41
        assert decode(codec, bytes(bad), len(data)) == plain_decode(codec, bytes(bad), len(data))


@both
@given(st.binary(min_size=1, max_size=60))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_stored_bytes_have_one_raw_size(codec: PhraseCodec, data: bytes) -> None:
    stored = encode(codec, data)
    accepted = [size for size in range(1, 70) if decode(codec, stored, size) is not None]
    assert accepted == [len(data)]


def damage(codec: PhraseCodec, stored: bytes, raw_bytes: int) -> str:
    with pytest.raises(BundleCorruptError) as caught:
        codec.decode(np.frombuffer(stored, np.uint8), raw_bytes)
    return str(caught.value)


@both
def test_bytes_and_bits_after_the_end_are_damage(codec: PhraseCodec) -> None:
    stored = encode(codec, b"abracadab")
    assert damage(codec, stored + b"\0", 9) == (
        f"an {codec.name} chunk of {len(stored) + 1} bytes does not decode to 9 bytes: "
        "something follows its last code"
    )
    bits = sum((n.bit_length() + 8) for n in range(6)) if codec is LZ78 else 8 + 7 * 9
    assert 8 * len(stored) - bits in range(1, 8)
    for bit in range(bits, 8 * len(stored)):
        bad = bytearray(stored)
        bad[bit // 8] |= 1 << bit % 8
        assert "something follows" in damage(codec, bytes(bad), 9)


@both
def test_missing_bytes_are_damage(codec: PhraseCodec) -> None:
    stored = encode(codec, b"abracadabra" * 9)
    for size in range(len(stored)):
        assert "its codes end before its last byte" in damage(codec, stored[:size], 99)


def test_codes_that_stand_for_nothing_are_damage() -> None:
    # lz78: 1 bit of code after one phrase, 2 bits after two: 3 is not there yet.
    pairs = 0b00000001_11 << 17 | 0b00000001_0 << 8 | 0b00000001
    assert "no phrase found before" in damage(LZ78, pairs.to_bytes(4, "little"), 50)
    # lzw: 256 may follow the first code, 257 may not.
    assert decode(LZW, (256 << 8 | 65).to_bytes(3, "little"), 3) == b"AAA"
    assert "no phrase found before" in damage(LZW, (257 << 8 | 65).to_bytes(3, "little"), 3)


@both
def test_a_phrase_beyond_the_last_byte_is_damage(codec: PhraseCodec) -> None:
    stored = encode(codec, bytes(10))  # phrases of 1, 2, 3 and 4 bytes
    for size in (8, 9):
        assert "a phrase reaches beyond" in damage(codec, stored, size)


@both
def test_decoding_writes_every_byte_that_it_returns(
    codec: PhraseCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = exponents(5000)
    stored = np.frombuffer(encode(codec, data), np.uint8)

    def poisoned(size: int, dtype: type[np.uint8]) -> ByteArray:
        return np.full(size, POISON, dtype)

    monkeypatch.setattr(np, "empty", poisoned)
    assert codec.decode(stored, len(data)).tobytes() == data


@both
def test_no_chunk_has_a_larger_ratio_than_declared(codec: PhraseCodec) -> None:
    """Code by code, from the longest phrase that it may stand for."""
    longest = 0.0
    for found in range((1 << 16) + 2):
        largest = min(found, 65535) if codec is LZ78 else min(255 + found, 65535)
        length = largest + 1 if codec is LZ78 else max(1, largest - 254)
        longest = max(longest, 8 * length / (largest.bit_length() + codec.literal_bits))
    assert codec.max_ratio - 1 < longest <= codec.max_ratio


def test_data_made_to_collide_costs_size_not_time() -> None:
    """Phrases whose slots all lie together: most are not found again, and nothing is lost."""
    data = colliding(6000)
    stored = encode(LZW, data)
    assert len(stored) > len(plain_phrases.lzw_encode(data))
    assert decode(LZW, stored, len(data)) == data
    assert plain_decode(LZW, stored, len(data)) == data


def colliding(phrases: int) -> bytes:
    """Twice in a row, data of which LZW learns phrases of the first 1/64 of the slots."""
    bytes_ = np.arange(256, dtype=np.uint64)
    children: dict[int, dict[int, int]] = {code: {} for code in range(256)}
    out, code = bytearray([0]), 0
    while len(children) < phrases + 256:
        slots = (np.uint64(code << 8) + bytes_) * loops._HASH >> loops._HASH_SHIFT
        wanted = np.flatnonzero(slots < loops._LAST_SLOT >> np.uint64(6))
        fresh = [int(byte) for byte in wanted if int(byte) not in children[code]]
        if fresh or not children[code]:
            byte = fresh[0] if fresh else len(out) % 256
            children[code][byte] = len(children)
            children[len(children)] = {}
            code = byte
        else:
            byte = list(children[code])[len(out) % len(children[code])]
            code = children[code][byte]
        out.append(byte)
    return bytes(out) * 2
