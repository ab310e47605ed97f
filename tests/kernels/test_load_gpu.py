"""What a load runs on a CUDA device beside the decoder: copies, filters, packed words."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from poison import poisoned_memory
from rans_cases import CHOICES, RansCase, damaged
from torch import Tensor

from tersor.kernels.entropy import EncodedChunk, decode_parts
from tersor.kernels.filters import join_bits, join_float8, join_floats, join_nibbles, reference
from tersor.kernels.int4 import Int4Layout
from tersor.kernels.int4.packing import pack_words
from tersor.kernels.interleave import interleave
from tersor.kernels.staging import Staging

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
SHAPES = [(1, 1), (3, 7), (63, 129), (257, 4096), (31, 5001)]


def _noise(*shape: int, below: int = 256) -> Tensor:
    return torch.randint(0, below, shape, dtype=torch.uint8)


@pytest.mark.parametrize("piece", [1000, 4096, 1 << 20])
def test_pieces_take_turns(piece: int) -> None:
    """Far more of them than two, so that a piece filled too early would show."""
    parts = [_noise(size) for size in (300_000, 1, 77_777, 0, 123_456)]
    out = torch.empty(sum(map(len, parts)), dtype=torch.uint8, device=GPU)
    staging = Staging(GPU, piece)
    for _ in range(5):
        out.fill_(0)
        staging.copy(parts, out)
        staging.wait()
        assert torch.equal(out.cpu(), torch.cat(parts))


@pytest.mark.parametrize("has_base", [False, True])
@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_floats(shape: tuple[int, int], width: int, has_base: bool) -> None:
    rows = shape[0] if has_base else 0
    streams = _noise(rows + width * shape[0] * shape[1])
    with poisoned_memory():
        joined = join_floats(streams.to(GPU), width, rows=rows)
    assert torch.equal(joined.cpu(), reference.join_floats(streams, width, rows))


@pytest.mark.parametrize("symbols", [1, 7, 4097, 1_000_001])
def test_integers(symbols: int) -> None:
    stream = _noise((symbols + 1) // 2)
    joined, bad = join_nibbles(stream.to(GPU), symbols)
    assert torch.equal(joined.cpu(), reference.join_nibbles(stream, symbols))
    assert bool(bad) == (symbols % 2 == 1 and int(stream[-1]) > 15)
    for function, size, bits in (
        (join_float8, symbols + (symbols + 1) // 2, 3),
        (join_bits, 4 * ((symbols + 7) // 8), 4),
    ):
        streams = _noise(size)
        joined, bad = function(streams.to(GPU), symbols, bits)
        expected, expected_bad = function(streams, symbols, bits)
        assert torch.equal(joined.cpu(), expected)
        assert bool(bad) == bool(expected_bad)


@pytest.mark.parametrize("bw", [16, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_words_of_codes(shape: tuple[int, int], bw: int) -> None:
    codes = _noise(*shape, below=16)
    with poisoned_memory():
        packed = interleave(codes.to(GPU), 4, bw)
    assert torch.equal(packed.cpu(), pack_words(codes, bw))


def test_an_int4_weight_is_what_its_codes_say() -> None:
    codes = _noise(65, 320, below=16)
    planes = {"codes": codes, "scales": torch.ones(65, 10).bfloat16()}
    params = {"group": 32, "symmetric": True}
    layout = Int4Layout.from_planes(planes, (65, 320), torch.bfloat16, params, GPU)
    assert torch.equal(layout.dense(torch.float32).cpu(), codes.float() - 8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("batch_bytes", [0, 100_000, 1 << 30])
def test_coded_and_plain_parts_in_one_tensor(batch_bytes: int, dtype: torch.dtype) -> None:
    kinds = list(CHOICES.values())
    cases = [
        RansCase.random(30_000 * seed + 1, dtype, seed=seed, patches=seed, classes=kinds[seed])
        for seed in range(len(kinds))
    ]
    parts: list[EncodedChunk | Tensor] = []
    expected = []
    for case in cases:
        plain = _noise(5000)
        parts += [case.chunk, plain]
        expected += [case.symbols.view(torch.uint8), plain]
    with poisoned_memory():
        out, bad = decode_parts(
            parts, Staging(GPU, 10_000), lambda _: nullcontext(), batch_bytes=batch_bytes
        )
    assert torch.equal(out.cpu(), torch.cat(expected))
    assert not bad


def test_a_part_that_does_not_decode_is_reported() -> None:
    case = RansCase.random(200_000, spread=30.0)
    parts: list[EncodedChunk | Tensor] = [case.chunk, damaged(case.chunk, word=70_000)]
    _, bad = decode_parts(parts, Staging(GPU), lambda _: nullcontext())
    assert bad
