"""The entropy codecs against plain decoders, against entropy, and against damage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import entropy_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundles import noise, weights

from tersor.bundle.codecs import BYTES, Codec, HuffmanCodec, RansCodec, StreamShape
from tersor.bundle.codecs.entropy.counting import count_symbols
from tersor.bundle.codecs.entropy.frequencies import normalised, table_of
from tersor.bundle.codecs.entropy.huffman_model import MAX_LENGTH, HuffmanModel, code_lengths
from tersor.bundle.codecs.entropy.layout import Sections
from tersor.bundle.codecs.entropy.rans_model import RansModel, pack_classes, unpack_classes
from tersor.bundle.dtypes import AnyArray, ByteArray
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.filters import FILTERS

CODECS: tuple[Codec, ...] = (HuffmanCodec(), RansCodec())
WIDE = StreamShape(symbol_bytes=2)
POISON = 0xA5


def bell(count: int, spread: int = 8) -> ByteArray:
    """Symbols around 128, as the codes of a quantizer are."""
    total = noise(8 * count, spread).view("<u2").reshape(count, 4).astype(np.int64).sum(axis=1)
    centred: AnyArray = 128 + (total - (2 << 16)) // (1 << (17 - spread))
    return centred.clip(0, 255).astype(np.uint8)


def scaled_rows(rows: int, columns: int, *, by_column: bool = False) -> ByteArray:
    """Exponents of rows (and columns) of different scales."""
    exponents = FILTERS["float_split"].split("bf16", weights((rows, columns)))[0]
    scale = np.arange(rows, dtype=np.uint8)[:, None] % 3
    if by_column:
        scale = scale + np.arange(columns, dtype=np.uint8)[None, :] % 4 * 2
    return (exponents.reshape(rows, columns) - scale).reshape(-1)


def round_trip(
    codec: Codec, data: ByteArray, shape: StreamShape = BYTES, table: ByteArray | None = None
) -> bytes:
    """Encodes, decodes both ways into poisoned memory, and returns the stored bytes."""
    draft = codec.draft(data, shape, table)
    assert draft is not None
    stored = draft.finish()
    out = np.full(data.size, POISON, np.uint8)
    codec.decode_into(np.frombuffer(stored, np.uint8), out, table)
    assert out.tobytes() == data.tobytes()
    assert codec.decode(np.frombuffer(stored, np.uint8), data.size, table).tobytes() == (
        data.tobytes()
    )
    return stored


SIZES = [1, 2, 3, 31, 32, 33, 63, 257, 4099, 65535, 65536, 65537, 131073]
DATA: dict[str, Callable[[int], ByteArray]] = {
    "bell": bell,
    "noise": noise,
    "zeros": lambda count: np.zeros(count, np.uint8),
    "two": lambda count: noise(count) & np.uint8(1),
    "rare": lambda count: np.where(np.arange(count) % 997 == 5, noise(count), 7).astype(np.uint8),
    "last": lambda count: np.full(count, 255, np.uint8),
}


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("count", SIZES)
def test_what_is_coded_is_decoded(codec: Codec, name: str, count: int) -> None:
    round_trip(codec, DATA[name](count))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("count", [1, 33, 2051])
def test_a_plain_decoder_reads_the_same(codec: Codec, name: str, count: int) -> None:
    data = DATA[name](count)
    stored = round_trip(codec, data)
    assert entropy_reference.decode(codec.name, stored, data.size) == data.tobytes()


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_plain_decoder_reads_blocks_and_patches(codec: Codec) -> None:
    data = bell(65536 + 77, 6)
    data[[3, 65535, 65536]] = [0, 255, 1]
    stored = round_trip(codec, data)
    assert np.frombuffer(stored[12:16], "<u4")[0] >= 3
    assert entropy_reference.decode(codec.name, stored, data.size) == data.tobytes()


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("count", [1, 500, 70001])
def test_symbols_of_two_bytes(codec: Codec, count: int) -> None:
    symbols = (bell(count, 9).astype(np.int16) - 128) * 3
    symbols[0] = -32768
    data = symbols.view(np.uint8)
    stored = round_trip(codec, data, WIDE)
    if count < 1000:
        assert entropy_reference.decode(codec.name, stored, data.size) == data.tobytes()
    # At any address.
    moved = np.empty(data.size + 1, np.uint8)[1:]
    moved[:] = data
    assert round_trip(codec, moved, WIDE) == stored


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_chunks_share_the_table_of_their_stream(codec: Codec) -> None:
    chunks = [bell(5000), bell(5001)[1:], bell(700)]
    table = codec.learn(chunks[:2], BYTES)
    assert table is not None
    for data in chunks:
        stored = round_trip(codec, data, BYTES, table)
        alone = round_trip(codec, data)
        assert len(stored) < len(alone)
        assert entropy_reference.decode(codec.name, stored, data.size, table.tobytes()) == (
            data.tobytes()
        )
        with pytest.raises(BundleCorruptError, match="its stream has none"):
            codec.decode(np.frombuffer(stored, np.uint8), data.size)
    # Symbols that the table lacks, and a chunk that its own model codes smaller.
    odd = np.full(5000, 3, np.uint8)
    odd[::50] = 250
    round_trip(codec, odd, BYTES, table)


@pytest.mark.parametrize(
    ("shape", "by_column"),
    [
        (StreamShape(row_symbols=160), False),
        (StreamShape(row_symbols=160, column_classes=True), True),
        (StreamShape(row_symbols=129, column_classes=True), True),
    ],
)
def test_classes_of_rows_and_columns_beat_one_table(shape: StreamShape, by_column: bool) -> None:
    codec = RansCodec()
    data = scaled_rows(700, shape.row_symbols, by_column=by_column)
    stored = round_trip(codec, data, shape)
    assert len(stored) < 0.99 * entropy_bytes(data)
    assert np.frombuffer(stored[4:8], "<u4")[0] == shape.row_symbols
    assert entropy_reference.decode("rans", stored, data.size) == data.tobytes()
    table = codec.learn([data], shape)
    assert table is not None
    shared = round_trip(codec, data[: 300 * shape.row_symbols], shape, table)
    assert entropy_reference.decode("rans", shared, 300 * shape.row_symbols, table.tobytes()) == (
        data[: 300 * shape.row_symbols].tobytes()
    )


def entropy_bytes(data: ByteArray) -> float:
    """Order-0 entropy of the whole."""
    counts = np.bincount(data)
    share = counts[counts > 0] / data.size
    return float(-(share * np.log2(share)).sum()) * data.size / 8


@pytest.mark.parametrize(
    "make", [bell, lambda count: bell(count, 6), lambda count: bell(count) & np.uint8(0xF0)]
)
def test_sizes_are_near_entropy_and_known_before(make: Callable[[int], ByteArray]) -> None:
    data = make(1 << 19)
    bound = entropy_bytes(data)
    for codec, excess in zip(CODECS, (1.03, 1.006), strict=True):
        draft = codec.draft(data, BYTES, None)
        assert draft is not None
        size = len(draft.finish())
        assert bound <= size <= excess * bound
        assert draft.stored_bytes == pytest.approx(size, rel=0.003)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=300))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_code_lengths_are_optimal_and_limited(counts: list[int]) -> None:
    values = np.array(counts, np.int64)
    lengths = code_lengths(values)
    assert ((1 << MAX_LENGTH) >> lengths).sum() == 1 << MAX_LENGTH
    assert lengths.min() >= 1
    assert lengths.max() <= MAX_LENGTH
    cost = int((values * lengths).sum())
    unlimited, longest = _huffman_cost(counts)
    assert cost >= unlimited
    if longest <= MAX_LENGTH:
        assert cost == unlimited
    # A more frequent symbol never has the longer code.
    order = np.argsort(-values, kind="stable")
    assert all(lengths[a] <= lengths[b] or values[a] == values[b] for a, b in pairwise(order))


def _huffman_cost(counts: list[int]) -> tuple[int, int]:
    """Total bits and the longest code of Huffman's own algorithm."""
    heap = sorted((count, 0) for count in counts)
    cost = 0
    while len(heap) > 1:
        (a, first), (b, second), *rest = heap
        cost += a + b
        heap = sorted([*rest, (a + b, max(first, second) + 1)])
    return cost, heap[0][1]


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=256), st.sampled_from([8, 11, 12, 15]))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_frequencies_fill_their_table(counts: list[int], precision: int) -> None:
    symbols, frequencies = table_of(np.array(counts, np.int64), precision, 1)
    assert frequencies.sum() == 1 << precision
    assert frequencies.min() >= 1
    assert (np.diff(symbols) > 0).all()


def test_frequencies_follow_their_counts() -> None:
    assert normalised(np.array([1, 1, 2]), 8).tolist() == [64, 64, 128]
    assert normalised(np.array([10**9, 1]), 12).tolist() == [4095, 1]
    assert normalised(np.ones(256, np.int64), 8).tolist() == [1] * 256


@pytest.mark.parametrize("kinds", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("count", [1, 7, 8, 63])
def test_classes_are_packed(kinds: int, count: int) -> None:
    values = noise(count) % np.uint8(kinds)
    packed = pack_classes(values, kinds)
    padded = np.frombuffer(packed + bytes(-len(packed) % 4), np.uint8)
    assert unpack_classes(Sections(padded, "test"), count, kinds).tolist() == values.tolist()


def test_models_survive_packing() -> None:
    counts = np.bincount(bell(5000), minlength=256)
    huffman = HuffmanModel.of_counts(counts, 1)
    again = HuffmanModel.unpack(np.frombuffer(huffman.pack(), np.uint8))
    assert np.array_equal(again.lengths, huffman.lengths)
    rans = RansModel.of_counts(counts[None], 1, row_classes=1, columns=np.empty(0, np.uint8))
    both = RansModel.unpack(np.frombuffer(rans.pack(), np.uint8))
    assert all(map(np.array_equal, both.frequencies, rans.frequencies))


def damaged(stored: bytes, at: int, value: bytes) -> ByteArray:
    return np.frombuffer(stored[:at] + value + stored[at + len(value) :], np.uint8)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"\x02", "layout 2"),
        (1, b"\x02", "flags 2"),
        (1, b"\x00", "flags 0 but a model"),
        (2, b"\x03", "symbols of 3 bytes"),
        (3, b"\x01", "reserved byte 1"),
        (4, b"\x09", "rows of 9"),
        (8, b"\xff\xff\xff\xff", "ends before byte"),
        (12, b"\xff\xff\xff\xff", "ends before byte"),
        (16, b"\x02", "bytes"),
    ],
)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_wrong_fields_are_named(codec: Codec, at: int, value: bytes, message: str) -> None:
    data = bell(3000)
    stored = round_trip(codec, data)
    with pytest.raises(BundleCorruptError, match=message):
        codec.decode(damaged(stored, at, value), data.size)


def test_a_state_from_which_one_word_may_not_do_is_refused() -> None:
    data = bell(3000)
    stored = round_trip(RansCodec(), data)
    states = 16 + int(np.frombuffer(stored[8:12], "<u4")[0]) + 4
    for lane, state in ((0, 0), (31, 65535)):
        bad = damaged(stored, states + 4 * lane, state.to_bytes(4, "little"))
        with pytest.raises(BundleCorruptError, match=f"is {state}; expected at least 65536"):
            RansCodec().decode(bad, data.size)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_other_lengths_are_damage(codec: Codec) -> None:
    data = bell(3000)
    stored = round_trip(codec, data)
    for bad in (stored + bytes(4), stored[:-4], stored[:-1], stored[:15], b"\x01"):
        with pytest.raises(BundleCorruptError):
            codec.decode(np.frombuffer(bad, np.uint8), data.size)
    for size in (2999, 3001, 1, 70000):
        with pytest.raises(BundleCorruptError):
            codec.decode(np.frombuffer(stored, np.uint8), size)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_changed_bit_is_damage_or_another_valid_chunk(codec: Codec) -> None:
    """Behind a forged checksum: never a crash, never bytes beyond the output."""
    data = scaled_rows(260, 128)
    shape = StreamShape(row_symbols=128)
    stored = round_trip(codec, data, shape)
    positions = np.random.default_rng(1).integers(0, len(stored), 300)
    found = 0
    for at in [*range(64), *positions]:
        bad = damaged(stored, int(at), bytes([stored[at] ^ (1 << (int(at) % 8))]))
        guarded = np.full(data.size + 64, POISON, np.uint8)
        try:
            codec.decode_into(bad, guarded[: data.size])
        except BundleCorruptError:
            found += 1
        assert (guarded[data.size :] == POISON).all()
    assert found > 200 if codec.name == "rans" else found > 30


@given(st.binary(min_size=1, max_size=400), st.integers(1, 70000), st.sampled_from(CODECS))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_garbage_is_damage(garbage: bytes, raw_bytes: int, codec: Codec) -> None:
    with suppress(BundleCorruptError):
        codec.decode(np.frombuffer(garbage, np.uint8), raw_bytes)
    with suppress(BundleCorruptError):
        codec.decode(
            np.frombuffer(round_trip(codec, bell(40)), np.uint8),
            raw_bytes,
            np.frombuffer(garbage, np.uint8),
        )


def test_the_decoders_tables_hold_every_slot() -> None:
    counts: AnyArray = np.bincount(bell(9999), minlength=256)
    model = RansModel.of_counts(counts[None], 1, row_classes=1, columns=np.empty(0, np.uint8))
    codes, values = model.slots()
    frequency, distance = codes >> 16, codes & 0xFFFF
    assert (distance < frequency).all()
    for symbol in np.unique(values):
        chosen = values == symbol
        assert chosen.sum() == frequency[chosen][0]
        assert distance[chosen].tolist() == list(range(chosen.sum()))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 4099])
@pytest.mark.parametrize("alphabet", [256, 1 << 16])
def test_counts_are_those_of_numpy(size: int, alphabet: int) -> None:
    symbols = (
        np.random.default_rng(size)
        .integers(0, alphabet, size)
        .astype(np.uint8 if alphabet == 256 else np.uint16)
    )
    tables = (np.arange(size) % 3).astype(np.uint8)
    once = np.ones((1, alphabet), np.int64)
    count_symbols(symbols, np.empty(0, np.uint8), once)
    assert (once[0] - 1 == np.bincount(symbols, minlength=alphabet)).all()
    each = np.zeros((3, alphabet), np.int64)
    count_symbols(symbols, tables, each)
    for table in range(3):
        expected = np.bincount(symbols[tables == table], minlength=alphabet)
        assert (each[table] == expected).all()
