"""Chunks, batches and the reference of the rANS decoder; its kernel: test_entropy_gpu.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rans_cases import (
    CHOICES,
    ODD_SIZES,
    PRECISIONS,
    Classes,
    RansCase,
    damaged,
    with_a_word_more,
    without_last_word,
)

from tersor.kernels.entropy import RansBatch, RansTables, rans_decode, rans_decode_into
from tersor.kernels.entropy.batch import BLOCK_FIELDS, TableChoice
from tersor.kernels.entropy.encoder import encode, tables_of
from tersor.kernels.entropy.reference import decode
from tersor.kernels.errors import CorruptChunkError, LayoutError

HOST = torch.device("cpu")
DTYPES = list(PRECISIONS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choice", list(CHOICES))
@pytest.mark.parametrize("size", [*ODD_SIZES, 65537])
def test_the_reference_decodes_what_the_encoder_makes(
    size: int, choice: str, dtype: torch.dtype
) -> None:
    case = RansCase.random(size, dtype, patches=size // 50, classes=CHOICES[choice])
    symbols, errors = decode(case.chunk)
    assert torch.equal(symbols, case.symbols)
    assert not errors.any()
    assert case.chunk.patch_positions.numel() == size // 50


@pytest.mark.parametrize("precision", [8, 12, 15])
def test_tables_of_one_symbol_take_no_words(precision: int) -> None:
    case = RansCase.random(100, spread=0, precision=precision)
    assert case.chunk.words.numel() == 0
    assert decode(case.chunk)[0].unique().tolist() == [40]


def test_the_encoder_is_near_the_entropy() -> None:
    case = RansCase.random(65536)
    share = torch.bincount(case.symbols.to(torch.int64)) / case.symbols.numel()
    bits = -(share * share.clamp_min(1e-9).log2()).sum().item()
    coded = 16 * case.chunk.words.numel() + 16 * 32  # the states hold 16 bits beyond their minimum
    assert bits * 65536 * 0.999 < coded < bits * 65536 * 1.005


def test_an_empty_chunk_decodes_to_nothing() -> None:
    chunk = RansCase.random(0).chunk
    symbols, errors = decode(chunk)
    assert (symbols.numel(), errors.numel()) == (0, 0)
    assert RansBatch.pack([chunk], HOST).states.shape == (0, 32)


def test_damage_shows_in_the_block_that_has_it() -> None:
    chunk = RansCase.random(65536 + 500).chunk
    last = chunk.words.numel() - 1
    for bad, blocks in (
        (damaged(chunk, word=3), [True, False]),
        (damaged(chunk, word=last), [False, True]),
        (damaged(chunk, state=7), [True, False]),
        (without_last_word(chunk), [False, True]),
        (with_a_word_more(chunk), [False, True]),
    ):
        assert decode(bad)[1].tolist() == blocks


def test_a_batch_describes_every_block() -> None:
    first = RansCase.random(65536 + 100, patches=3).chunk
    second = RansCase.random(300, classes=Classes(row_symbols=64, rows=2), seed=1).chunk
    batch = RansBatch.pack([first, second, replace(first)], HOST)
    assert batch.symbols == 2 * 65636 + 300
    assert batch.choice == TableChoice.ROW
    assert batch.slots.numel() == 3 << 12  # the tables of the first chunk are there once
    described = [dict(zip(BLOCK_FIELDS, block.tolist(), strict=True)) for block in batch.blocks]
    assert [block["symbols"] for block in described] == [65536, 100, 300, 65536, 100]
    assert [block["out_at"] for block in described] == [0, 65536, 65636, 65936, 131472]
    assert [block["slots_at"] for block in described] == [0, 0, 1 << 12, 0, 0]
    assert described[0]["words_end"] == described[1]["words_at"] == int(first.word_ends[0])
    assert described[-1]["words_end"] == batch.words.numel()
    assert batch.patch_positions[3:].tolist() == (first.patch_positions + 65936).tolist()


@pytest.mark.parametrize(
    ("classes", "choice"),
    [
        (CHOICES["one table"], TableChoice.ROW),
        (CHOICES["rows"], TableChoice.ROW),
        (CHOICES["columns"], TableChoice.COLUMN),
        (CHOICES["odd rows"], TableChoice.SYMBOL),
        (Classes(row_symbols=300, rows=2), TableChoice.ROW),  # a single row
    ],
)
def test_a_batch_takes_the_fastest_way_to_choose_tables(
    classes: Classes, choice: TableChoice
) -> None:
    assert RansBatch.pack([RansCase.random(200, classes=classes).chunk], HOST).choice == choice


def test_entries_are_narrow_where_all_tables_allow_it() -> None:
    narrow, precise = RansCase.random(50).chunk, RansCase.random(50, precision=13).chunk
    assert RansBatch.pack([narrow], HOST).slots.dtype == torch.uint32
    assert RansBatch.pack([narrow, precise], HOST).slots.dtype == torch.uint64
    wide = RansCase.random(50, torch.uint16, precision=12).chunk
    assert RansBatch.pack([wide], HOST).slots.dtype == torch.uint64
    with pytest.raises(LayoutError, match="symbols have one width"):
        RansBatch.pack([narrow, wide], HOST)
    with pytest.raises(LayoutError, match="got 0 chunks"):
        RansBatch.pack([], HOST)


def test_errors_name_chunk_and_block() -> None:
    chunks = [RansCase.random(size).chunk for size in (10, 65536 * 2, 10)]
    batch = RansBatch.pack(chunks, HOST)
    errors = torch.zeros(4, dtype=torch.int32)
    batch.check(errors)
    errors[2:] = 1
    with pytest.raises(CorruptChunkError, match=r"block 1 of chunk 1 does .*2 of 4 blocks"):
        batch.check(errors)


def test_chunks_whose_parts_do_not_fit_are_refused() -> None:
    chunk = RansCase.random(100, patches=2, classes=CHOICES["rows and columns"]).chunk
    cases: list[tuple[dict[str, object], str]] = [
        ({"symbols": 1 << 31}, "`symbols` is 2147483648"),
        ({"states": chunk.states[:, :31]}, r"`states` has shape \[1, 31\], expected \[1, 32\]"),
        ({"word_ends": chunk.word_ends + 1}, "`word_ends` must ascend"),
        ({"words": chunk.words.view(torch.int16)}, "`words` has dtype torch.int16"),
        ({"column_classes": 3}, "16 tables do not fit 3 column classes"),
        ({"row_symbols": 0}, "16 tables do not fit 4 column classes and rows of 0 symbols"),
        ({"row_symbols": 63}, r"`column_class` has shape \[64\], expected \[63\]"),
        ({"row_class": chunk.row_class + 4}, "`row_class` holds .*, expected below 4"),
        ({"column_class": chunk.column_class + 4}, "`column_class` holds .*, expected below 4"),
        ({"patch_positions": chunk.patch_positions.flip(0)}, "`patch_positions` must ascend"),
        ({"patch_positions": chunk.patch_positions + 100}, "`patch_positions` must ascend"),
        ({"patch_positions": chunk.patch_positions - 100}, "`patch_positions` must ascend"),
        ({"patch_values": chunk.patch_values.to(torch.uint16)}, "`patch_values` has dtype"),
    ]
    for changed, message in cases:
        with pytest.raises(LayoutError, match=message):
            replace(chunk, **changed)  # type: ignore[arg-type]  # wrong on purpose


def test_tables_that_are_none_are_refused() -> None:
    tables = RansCase.random(100).chunk.tables
    half = tables.codes.numel() // 2
    for codes, values, precision, message in (
        (tables.codes, tables.values, 16, "`precision` is 16, expected 8 to 15"),
        (tables.codes, tables.values[:half], 12, r"`values` has shape \[2048\]"),
        (tables.codes[:half], tables.values[:half], 12, "`codes` has 2048 slots"),
        (tables.codes.new_zeros(4096), tables.values, 12, "a slot beyond its symbol's"),
        (tables.codes.new_full((4096,), 5000 << 16), tables.values, 12, "frequency above 4096"),
    ):
        with pytest.raises(LayoutError, match=message):
            RansTables(precision=precision, codes=codes, values=values)
    with pytest.raises(LayoutError, match="`codes` has 69632 slots"):
        tables_of(torch.ones(17, 256, dtype=torch.int64), 12, torch.uint8)


def test_what_a_table_lacks_becomes_a_patch() -> None:
    tables = tables_of(torch.eye(1, 256, dtype=torch.int64), 8, torch.uint8)
    symbols = torch.tensor([0, 9, 0, 0, 255], dtype=torch.uint8)
    chunk = encode(symbols, tables)
    assert chunk.patch_positions.tolist() == [1, 4]
    assert torch.equal(decode(chunk)[0], symbols)


def test_the_operator_has_shapes_without_data() -> None:
    batch = RansBatch.pack([RansCase.random(100, torch.uint16).chunk], torch.device("meta"))
    symbols, errors = rans_decode(batch)
    assert (symbols.shape, symbols.dtype) == ((100,), torch.uint16)
    assert (errors.shape, errors.dtype) == ((1,), torch.int32)
    errors = rans_decode_into(batch, torch.empty(500, dtype=torch.uint16, device="meta"))
    assert (errors.shape, errors.dtype) == ((1,), torch.int32)


def test_the_kernel_refuses_a_cpu_without_the_interpreter() -> None:
    batch = RansBatch.pack([RansCase.random(100).chunk], HOST)
    with pytest.raises(LayoutError, match="need operands on a GPU, got cpu"):
        rans_decode(batch)
