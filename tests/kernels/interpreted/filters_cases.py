"""The kernels of a load beside the decoder itself, under Triton's interpreter.

Joining streams, packing words, and many parts in one tensor. Run by ../test_triton_interpreted.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from interpreted_memory import bounded_memory
from poison import poisoned_memory
from rans_cases import RansCase, damaged
from torch import Tensor

from tersor.kernels.entropy import EncodedChunk, RansBatch, decode_parts, rans_decode_into
from tersor.kernels.errors import LayoutError
from tersor.kernels.filters import join_floats, join_nibbles, reference
from tersor.kernels.filters import triton as filters
from tersor.kernels.int4.packing import pack_words
from tersor.kernels.interleave import interleave
from tersor.kernels.interleave import triton as words
from tersor.kernels.staging import Staging

HOST = torch.device("cpu")
SHAPES = [(1, 1), (3, 7), (17, 129), (29, 63), (2, 4096), (1, 4099)]


def _noise(*shape: int, below: int = 256) -> Tensor:
    return torch.randint(0, below, shape, dtype=torch.uint8)


@contextmanager
def _guarded(*tensors: Tensor) -> Iterator[None]:
    with poisoned_memory(), bounded_memory(tensors):
        yield


@pytest.mark.parametrize("has_base", [False, True])
@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_floats(shape: tuple[int, int], width: int, has_base: bool) -> None:
    rows = shape[0] if has_base else 0
    streams = _noise(rows + width * shape[0] * shape[1])
    with _guarded(streams):
        joined = join_floats(streams, width, rows=rows)
    assert torch.equal(joined, reference.join_floats(streams, width, rows))


@pytest.mark.parametrize("symbols", [1, 2, 7, 4095, 4096, 4097, 9001])
def test_nibbles(symbols: int) -> None:
    stream = _noise((symbols + 1) // 2)
    with _guarded(stream):
        joined, bad = join_nibbles(stream, symbols)
    assert torch.equal(joined, reference.join_nibbles(stream, symbols))
    assert bool(bad) == (symbols % 2 == 1 and int(stream[-1]) > 15)


def test_more_rows_than_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "MAX_PROGRAMS", 3)
    with pytest.raises(LayoutError, match="4 rows of 2 symbols are too many"):
        join_floats(_noise(4 + 16), 2, rows=4)


@pytest.mark.parametrize("bw", [16, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_words_of_codes(shape: tuple[int, int], bw: int) -> None:
    codes = _noise(*shape, below=16)
    with _guarded(codes):
        packed = interleave(codes, 4, bw)
    assert torch.equal(packed, pack_words(codes, bw))


def test_words_of_bytes() -> None:
    symbols = _noise(3, 130)
    packed = interleave(symbols, 8, 32)
    slices = torch.nn.functional.pad(symbols, (0, 126)).view(3, 2, 4, 32).transpose(2, 3)
    assert torch.equal(packed, slices.contiguous().view(torch.int32).view(3, 64))


def test_long_rows_take_several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "BLOCK", 64)
    codes = _noise(2, 1000, below=16)
    assert torch.equal(interleave(codes, 4, 32), pack_words(codes, 32))


def test_only_bytes_make_words() -> None:
    with pytest.raises(LayoutError, match=r"`symbols` has dtype torch\.int32"):
        interleave(torch.zeros(2, 2, dtype=torch.int32), 4, 32)


def test_chunks_land_where_they_were_packed_for() -> None:
    cases = [RansCase.random(70, seed=1, patches=1), RansCase.random(33, seed=2)]
    batch = RansBatch.pack([case.chunk for case in cases], HOST, places=[50, 3])
    out = torch.full((125,), 7, dtype=torch.uint8)
    assert not rans_decode_into(batch, out).any()
    assert torch.equal(out[50:120], cases[0].symbols)
    assert torch.equal(out[3:36], cases[1].symbols)
    assert out[[0, 2, 36, 49, 120, 124]].tolist() == [7] * 6
    # Cut so that the first no longer fits: an error of its block, and nothing is written.
    short = out[:119].clone()
    assert rans_decode_into(batch, short[:119]).tolist() == [1, 0]
    with pytest.raises(LayoutError, match=r"`out` has dtype torch\.int16"):
        rans_decode_into(batch, out.to(torch.int16))


def _decoded(
    parts: Sequence[EncodedChunk | Tensor], batch_bytes: int
) -> tuple[Tensor, bool, Counter[str]]:
    phases: Counter[str] = Counter()

    @contextmanager
    def measure(phase: str) -> Iterator[None]:
        phases[phase] += 1
        yield

    with poisoned_memory():
        out, bad = decode_parts(parts, Staging(HOST, 100), measure, batch_bytes=batch_bytes)
    return out, bool(bad), phases


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(("batch_bytes", "batches"), [(0, 3), (1 << 20, 1)])
def test_coded_and_plain_parts_in_one_tensor(
    batch_bytes: int, batches: int, dtype: torch.dtype
) -> None:
    cases = [
        RansCase.random(size, dtype, seed=size, patches=1, spread=30.0) for size in (200, 133, 150)
    ]
    plain = [_noise(34), _noise(2)]
    parts: list[EncodedChunk | Tensor] = [cases[0].chunk, plain[0], cases[1].chunk]
    parts += [cases[2].chunk, plain[1]]
    out, bad, phases = _decoded(parts, batch_bytes)
    first, second, third = (case.symbols.view(torch.uint8) for case in cases)
    assert torch.equal(out, torch.cat([first, plain[0], second, third, plain[1]]))
    assert not bad
    assert phases == {"transfer": batches + 1, "decode": batches}


def test_a_part_that_does_not_decode_is_reported() -> None:
    case = RansCase.random(200, spread=30.0)
    out, bad, _ = _decoded([case.chunk, damaged(case.chunk, word=2)], 0)
    assert bad
    assert torch.equal(out[:200], case.symbols)


def test_widths_do_not_mix() -> None:
    wide = RansCase.random(40, torch.uint16).chunk
    mixes: list[list[EncodedChunk | Tensor]] = [
        [wide, RansCase.random(40).chunk],
        [_noise(3), wide],
        [wide, _noise(3)],
    ]
    for parts in mixes:
        with pytest.raises(LayoutError, match="are not decoded into one tensor of"):
            _decoded(parts, 1 << 20)
