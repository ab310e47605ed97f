"""The rANS kernels under Triton's interpreter, on the CPU. Run by ../test_triton_interpreted.py.

A step of 32 symbols takes the interpreter about 6 ms, so most cases are a few steps long, and
blocks of 96 symbols stand for those of 65536.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from interpreted_memory import bounded_memory
from poison import poisoned_memory
from rans_cases import (
    CHOICES,
    ODD_SIZES,
    RansCase,
    damaged,
    with_a_word_more,
    without_last_word,
)
from torch import Tensor

from tersor.kernels.entropy import EncodedChunk, RansBatch, encoder, rans_decode, reference
from tersor.kernels.entropy import batch as batch_module
from tersor.kernels.entropy import chunk as chunk_module
from tersor.kernels.entropy.batch import BLOCK_FIELDS
from tersor.kernels.errors import LayoutError

HOST = torch.device("cpu")
SHORT_BLOCK = 96


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few symbols make many blocks. To the kernel a block's length is a number like others."""
    for module in (batch_module, chunk_module, encoder, reference):
        monkeypatch.setattr(module, "BLOCK_SYMBOLS", SHORT_BLOCK)


def _decode(batch: RansBatch) -> tuple[Tensor, Tensor]:
    parts = [getattr(batch, field.name) for field in fields(batch)]
    with poisoned_memory(), bounded_memory([part for part in parts if isinstance(part, Tensor)]):
        symbols, errors = rans_decode(batch)
    return symbols, errors


def _decodes(*cases: RansCase) -> bool:
    symbols, errors = _decode(RansBatch.pack([case.chunk for case in cases], HOST))
    same = torch.equal(symbols, torch.cat([case.symbols for case in cases]))
    return same and not errors.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("size", ODD_SIZES)
def test_odd_sizes(size: int, dtype: torch.dtype) -> None:
    assert _decodes(RansCase.random(size, dtype, patches=size // 30))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("choice", list(CHOICES))
def test_blocks_that_begin_anywhere_in_a_row(choice: str) -> None:
    assert _decodes(RansCase.random(2 * SHORT_BLOCK + 50, patches=2, classes=CHOICES[choice]))


@pytest.mark.parametrize("spread", [0.0, 0.3, 30.0])
def test_few_and_many_words(spread: float) -> None:
    """None, less than one a step, and nearly half a word a symbol: the window moves accordingly."""
    assert _decodes(RansCase.random(400, spread=spread))


@pytest.mark.parametrize("precision", [8, 12, 13, 15])
def test_precisions(precision: int) -> None:
    assert _decodes(RansCase.random(100, precision=precision))


@pytest.mark.usefixtures("short_blocks")
def test_chunks_of_every_kind_in_one_launch() -> None:
    cases = [
        RansCase.random(
            60 + 20 * seed, precision=12 + seed % 2, patches=1, seed=seed, classes=classes
        )
        for seed, classes in enumerate(CHOICES.values())
    ]
    assert _decodes(*cases, cases[0])


def test_an_empty_batch_launches_nothing() -> None:
    assert _decodes(RansCase.random(0))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(
    "damage",
    [
        lambda chunk: damaged(chunk, word=2),
        lambda chunk: damaged(chunk, word=chunk.words.numel() - 1),
        lambda chunk: damaged(chunk, state=31),
        lambda chunk: replace(chunk, states=torch.zeros_like(chunk.states)),
        without_last_word,
        with_a_word_more,
    ],
)
def test_damage_is_reported_as_the_reference_does(
    damage: Callable[[EncodedChunk], EncodedChunk],
) -> None:
    chunk = damage(RansCase.random(2 * SHORT_BLOCK - 6, spread=30.0).chunk)
    symbols, errors = _decode(RansBatch.pack([chunk], HOST))
    expected_symbols, expected_errors = reference.decode(chunk)
    assert torch.equal(symbols, expected_symbols)
    assert torch.equal(errors != 0, expected_errors)
    assert bool(expected_errors.any())


WRONG_NUMBERS = [
    *((name, -1) for name in BLOCK_FIELDS),
    *((name, 1 << 40) for name in BLOCK_FIELDS),
    *((name, -(1 << 63)) for name in BLOCK_FIELDS),
    ("words_at", 10**6), ("words_end", 10**6), ("out_at", 1), ("symbols", 1001), ("precision", 13),
    ("slots_at", 1), ("tables", 17), ("row", 17), ("last_row", 17), ("column", 64),
    ("columns_at", 2), ("columns_at", 60), ("column_stride", 2), ("precision", 0), ("tables", 0),
    ("row_symbols", 0),
]  # fmt: skip


def test_numbers_of_a_block_that_lead_outside_are_refused() -> None:
    """One block a number: all are refused, and the one that is right is decoded."""
    case = RansCase.random(1000, classes=CHOICES["rows and columns"])
    batch = RansBatch.pack([case.chunk], HOST)
    blocks = batch.blocks.repeat(1 + len(WRONG_NUMBERS), 1)
    for block, (name, value) in zip(blocks, WRONG_NUMBERS, strict=False):
        block[BLOCK_FIELDS.index(name)] = value
    states = batch.states.repeat(len(blocks), 1)
    symbols, errors = _decode(replace(batch, blocks=blocks, states=states))
    assert errors.tolist() == [1] * len(WRONG_NUMBERS) + [0]
    assert torch.equal(symbols, case.symbols)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("choice", list(CHOICES))
def test_nothing_outside_the_operands_is_accessed_whatever_they_hold(
    choice: str, seed: int
) -> None:
    chunk = RansCase.random(150, patches=2, classes=CHOICES[choice], spread=20.0).chunk
    batch = RansBatch.pack([chunk], HOST)
    rng = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        raw = torch.randint(0, 256, (tensor.nbytes,), generator=rng, dtype=torch.uint8)
        return raw.view(tensor.dtype).view(tensor.shape)

    noisy = replace(
        batch,
        words=noise(batch.words),
        states=noise(batch.states),
        slots=noise(batch.slots),
        rows=noise(batch.rows),
        columns=noise(batch.columns),
        patch_positions=torch.tensor([-1, 150]),
    )
    assert _decode(noisy)[1].tolist() == [1, 1]


def test_a_lane_without_symbols_takes_no_word() -> None:
    """Its state stays what it was, and it did not begin where the encoder did."""
    chunk = RansCase.random(1).chunk
    states = chunk.states.clone()
    states[0, 5] = 1
    bad = replace(
        chunk,
        states=states,
        words=torch.zeros(1, dtype=torch.uint16),
        word_ends=torch.ones(1, dtype=torch.int64),
    )
    assert reference.decode(bad)[1].tolist() == [True]
    assert _decode(RansBatch.pack([bad], HOST))[1].tolist() == [1]


def test_the_launcher_names_the_argument_that_does_not_fit() -> None:
    batch = RansBatch.pack([RansCase.random(100, patches=2).chunk], HOST)
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({"words": batch.words.view(torch.int16)}, "`words` has dtype torch.int16"),
        ({"states": batch.states.view(-1)}, r"`states` has shape \[32\], expected \[any, 32\]"),
        ({"blocks": batch.blocks[:, 1:]}, r"`blocks` has shape \[1, 12\], expected \[1, 13\]"),
        ({"slots": batch.slots.view(torch.int32)}, "`slots` has dtype torch.int32"),
        ({"rows": batch.rows.to(torch.int64)}, "`rows` has dtype torch.int64"),
        ({"columns": batch.columns[::2]}, r"`columns` of shape \[33\] has strides \[2\]"),
        (
            {"patch_values": batch.patch_values[:1]},
            r"`patch_values` has shape \[1\], expected \[2\]",
        ),
    ]
    for changed, message in cases:
        with pytest.raises(LayoutError, match=message):
            rans_decode(replace(batch, **changed))  # type: ignore[arg-type]  # wrong on purpose
