"""Codecs: exact, deterministic, and bounded by what the manifest declares."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundles import weights

from tersor.bundle.codecs import (
    BYTES,
    CODEC_NAMES,
    MAX_RATIOS,
    Codec,
    RawCodec,
    ZstdCodec,
    default_codecs,
)
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.encoding import DECODE_FLOOR_MB_PER_SECOND, Chooser, StreamPlan
from tersor.bundle.errors import BundleCorruptError, BundleWriteError
from tersor.bundle.filters import FILTERS

PLAIN = StreamPlan(shape=BYTES)
Make = Callable[[int], ByteArray]


def _exponents(size: int) -> ByteArray:
    streams = FILTERS["float_split"].split("bf16", weights((size,)))
    return streams[0]


def _noise(size: int) -> ByteArray:
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def _zeros(size: int) -> ByteArray:
    return np.zeros(size, np.uint8)


def _rows(size: int) -> ByteArray:
    return np.resize(_noise(1 << 10), size)


@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("make", [_exponents, _noise, _zeros, _rows])
@pytest.mark.parametrize("size", [1, 2, 100, 1 << 17, (1 << 19) + 7])
def test_round_trip(name: str, make: Make, size: int) -> None:
    codec = default_codecs()[name]
    data = make(size)
    for encoder in codec.encoders:
        stored = np.frombuffer(encoder(data, BYTES, None), np.uint8)
        assert data.size <= stored.size * MAX_RATIOS[name]
        assert codec.decode(stored, data.size).tobytes() == data.tobytes()
        out = np.empty(data.size, np.uint8)
        codec.decode_into(stored, out)
        assert out.tobytes() == data.tobytes()


@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("wrong", [-1, 1, 1000])
def test_a_wrong_raw_size_is_damage(name: str, wrong: int) -> None:
    codec = default_codecs()[name]
    data = _rows(5000)
    stored = np.frombuffer(codec.encoders[0](data, BYTES, None), np.uint8)
    with pytest.raises(BundleCorruptError):
        codec.decode(stored, data.size + wrong)


@pytest.mark.parametrize("name", CODEC_NAMES[1:])
def test_bytes_after_the_end_and_missing_bytes_are_damage(name: str) -> None:
    codec = default_codecs()[name]
    data = _rows(5000)
    stored = codec.encoders[0](data, BYTES, None)
    for bad in (stored + b"\0", stored[:-1], stored[: len(stored) // 2], b"\0", stored * 2):
        with pytest.raises(BundleCorruptError):
            codec.decode(np.frombuffer(bad, np.uint8), data.size)


def test_a_frame_that_lies_about_its_content_is_damage() -> None:
    # The same blocks behind a header that declares 100 bytes instead of 5000.
    honest = zstandard.ZstdCompressor(level=1).compress(bytes(5000))
    assert honest[4:7] == b"\x60\x88\x12"  # single segment, two-byte content size 5000 - 256
    lying = honest[:4] + b"\x20" + bytes([100]) + honest[7:]
    assert zstandard.frame_content_size(lying) == 100
    with pytest.raises(BundleCorruptError):
        ZstdCodec().decode(np.frombuffer(lying, np.uint8), 100)


def test_a_frame_without_content_size_is_damage() -> None:
    stored = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(BundleCorruptError, match="declares"):
        ZstdCodec().decode(np.frombuffer(stored, np.uint8), 100)


def test_a_frame_with_neighbours_or_of_a_dictionary_is_damage() -> None:
    raw = bytes(range(256)) * 4
    frame = zstandard.ZstdCompressor().compress(raw)
    skippable = bytes.fromhex("502a4d18 04000000 61626364")
    words: list[bytes | bytearray | memoryview] = [
        bytes([at % 7, at % 5, 3]) * 50 for at in range(300)
    ]
    dictionary = zstandard.train_dictionary(2000, words)
    with_dictionary = zstandard.ZstdCompressor(dict_data=dictionary).compress(raw)
    for bad in (skippable + frame, frame + skippable, frame + frame, with_dictionary):
        with pytest.raises(BundleCorruptError):
            default_codecs()["zstd"].decode(np.frombuffer(bad, np.uint8), len(raw))


def test_exponents_are_stored_near_their_order_0_entropy() -> None:
    data = _exponents(1 << 19)
    counts = np.bincount(data)
    share = counts[counts > 0] / data.size
    bound = -(share * np.log2(share)).sum() / 8 * data.size
    chosen = Chooser(default_codecs(), "auto").encode(data, PLAIN)
    assert chosen.codec == "rans"
    # The states of its blocks; a Huffman code would waste 1.5 %, zstd's level 1 10 %.
    assert len(chosen.data) < 1.006 * bound


def test_auto_keeps_the_smallest_and_stores_noise_raw() -> None:
    codecs = default_codecs()
    chooser = Chooser(codecs, "auto")
    assert chooser.encode(_noise(1 << 19), PLAIN).codec == "raw"
    for data in (_exponents(1 << 19), _rows(1 << 19), _zeros(1 << 19), _exponents(3000)):
        sizes = [
            len(encoder(data, BYTES, None))
            for codec in codecs.values()
            if codec.in_auto
            for encoder in codec.encoders
        ]
        assert len(chooser.encode(data, PLAIN).data) == min(sizes)


def test_a_named_codec_is_used_alone_with_raw_where_it_does_not_pay() -> None:
    chooser = Chooser(default_codecs(), "lz4")
    assert chooser.encode(_rows(1 << 16), PLAIN).codec == "lz4"
    assert chooser.encode(_noise(1 << 16), PLAIN).codec == "raw"
    assert Chooser(default_codecs(), "raw").encode(_zeros(100), PLAIN).codec == "raw"


def test_an_unknown_codec_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        BundleWriteError, match="'brotli'; expected auto or one of raw, lz4, zstd, "
    ):
        Chooser(default_codecs(), "brotli")


class _SlowCodec(ZstdCodec):
    name = "other"
    decode_mb_per_second = DECODE_FLOOR_MB_PER_SECOND - 1


class _FastEnoughCodec(ZstdCodec):
    name = "other"
    decode_mb_per_second = DECODE_FLOOR_MB_PER_SECOND


class _OnlyByNameCodec(ZstdCodec):
    name = "other"
    in_auto = False


@pytest.mark.parametrize(
    ("codec", "tried"),
    [(_SlowCodec(), False), (_FastEnoughCodec(), True), (_OnlyByNameCodec(), False)],
)
def test_auto_leaves_out_what_decodes_slowly_or_is_only_for_who_names_it(
    codec: Codec, tried: bool
) -> None:
    codecs = {"raw": RawCodec(), "other": codec}
    data = _exponents(5000)
    assert Chooser(codecs, "auto").encode(data, PLAIN).codec == ("other" if tried else "raw")
    assert Chooser(codecs, "other").encode(data, PLAIN).codec == "other"


def test_auto_tries_lz4_and_zstd_but_neither_lz78_nor_lzw() -> None:
    tried = {
        name: codec.in_auto and codec.decode_mb_per_second >= DECODE_FLOOR_MB_PER_SECOND
        for name, codec in default_codecs().items()
    }
    assert tried["lz4"]
    assert tried["zstd"]
    assert not tried["lz78"]
    assert not tried["lzw"]


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_one_codec_serves_many_threads(name: str) -> None:
    codec = default_codecs()[name]
    data = [_exponents(50_000 + n) for n in range(16)]

    def work(item: ByteArray) -> bool:
        stored = [np.frombuffer(encoder(item, BYTES, None), np.uint8) for encoder in codec.encoders]
        return all(codec.decode(s, item.size).tobytes() == item.tobytes() for s in stored)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, data * 4))


@given(st.binary(min_size=1, max_size=300), st.integers(1, 400))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_garbage_decodes_to_exactly_the_declared_size_or_is_damage(
    stored: bytes, raw_bytes: int
) -> None:
    for codec in default_codecs().values():
        with suppress(BundleCorruptError):
            assert codec.decode(np.frombuffer(stored, np.uint8), raw_bytes).size == raw_bytes
