"""The rANS kernels on a CUDA device, against the symbols that were encoded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from poison import poisoned_memory
from rans_cases import CHOICES, RansCase, damaged, with_a_word_more, without_last_word
from torch import Tensor

from tersor.kernels.entropy import RansBatch, rans_decode, reference
from tersor.kernels.entropy import triton as entropy
from tersor.kernels.errors import CorruptChunkError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
SIZES = [1, 31, 33, 65535, 65536, 65537, 200001]


def _decode(*cases: RansCase) -> tuple[Tensor, Tensor]:
    batch = RansBatch.pack([case.chunk for case in cases], GPU)
    with poisoned_memory():
        symbols, errors = rans_decode(batch)
    return symbols.cpu(), errors.cpu()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("choice", list(CHOICES))
@pytest.mark.parametrize("size", SIZES)
def test_blocks_of_every_kind(size: int, choice: str, dtype: torch.dtype) -> None:
    case = RansCase.random(size, dtype, patches=size // 50, classes=CHOICES[choice])
    symbols, errors = _decode(case)
    assert torch.equal(symbols, case.symbols)
    assert not errors.any()


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 100.0])
@pytest.mark.parametrize("precision", [8, 11, 12, 13, 15])
def test_precisions_with_few_and_many_words(precision: int, spread: float) -> None:
    case = RansCase.random(70000, precision=precision, spread=spread)
    symbols, errors = _decode(case)
    assert torch.equal(symbols, case.symbols)
    assert not errors.any()


def test_many_chunks_in_one_launch() -> None:
    kinds = list(CHOICES.values())
    cases = [
        RansCase.random(3000 * seed + 1, seed=seed, patches=seed, classes=kinds[seed % len(kinds)])
        for seed in range(60)
    ]
    symbols, errors = _decode(*cases)
    assert torch.equal(symbols, torch.cat([case.symbols for case in cases]))
    assert not errors.any()


def test_the_portable_kernel_makes_the_same_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "has_inline_asm", lambda _: False)
    for classes in CHOICES.values():
        case = RansCase.random(70000, classes=classes)
        symbols, errors = _decode(case)
        assert torch.equal(symbols, case.symbols)
        assert not errors.any()


def test_damage_is_reported_as_the_reference_does() -> None:
    chunk = RansCase.random(65536 + 5000).chunk
    for bad in (
        damaged(chunk, word=3),
        damaged(chunk, word=chunk.words.numel() - 1),
        damaged(chunk, state=31),
        replace(chunk, states=torch.zeros_like(chunk.states)),
        without_last_word(chunk),
        with_a_word_more(chunk),
    ):
        batch = RansBatch.pack([bad], GPU)
        symbols, errors = rans_decode(batch)
        expected_symbols, expected_errors = reference.decode(bad)
        assert torch.equal(symbols.cpu(), expected_symbols)
        assert torch.equal(errors.cpu() != 0, expected_errors)
        with pytest.raises(CorruptChunkError, match=r"block . of chunk 0 does not decode"):
            batch.check(errors)


def test_decoding_is_captured_by_a_cuda_graph() -> None:
    case = RansCase.random(70000, patches=100)
    batch = RansBatch.pack([case.chunk], GPU)
    rans_decode(batch)  # compiles the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        symbols, errors = rans_decode(batch)
    graph.replay()
    assert torch.equal(symbols.cpu(), case.symbols)
    assert not errors.any()
