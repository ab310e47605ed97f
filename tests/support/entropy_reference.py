"""Plain decoders of the entropy codecs, one symbol at a time, as `docs/format.md` words them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

BLOCK = 65536


@dataclass
class Bytes:
    """A byte string that is read from its start on."""

    data: bytes
    at: int = 0

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        assert len(part) == size
        self.at += size
        return part

    def numbers(self, count: int, width: int) -> list[int]:
        data = self.take(count * width)
        self.pad()
        return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]

    def pad(self) -> None:
        assert not any(self.take(-self.at % 4))

    def classes(self, count: int, kinds: int) -> list[int]:
        bits = 0 if kinds == 1 else 1 if kinds == 2 else 2 if kinds <= 4 else 4
        if bits == 0:
            return [0] * count
        packed = self.take(-(-count * bits // 8))
        self.pad()
        return [packed[i * bits // 8] >> (i * bits % 8) & ((1 << bits) - 1) for i in range(count)]


def decode(codec: str, stored: bytes, raw_bytes: int, table: bytes | None = None) -> bytes:
    """A chunk of "huffman" or "rans"."""
    source = Bytes(stored)
    layout, inline, width, zero, row, model_bytes, patches = struct.unpack(
        "<BBBBIII", source.take(16)
    )
    assert (layout, zero) == (1, 0)
    model = Bytes(source.take(model_bytes) if inline else table or b"")
    source.pad()
    count = raw_bytes // width
    symbols = (_huffman if codec == "huffman" else _rans)(source, model, count, width, row)
    source.pad()
    positions = source.numbers(patches, 4)
    values = source.numbers(patches, width)
    assert source.at == len(stored)
    for position, value in zip(positions, values, strict=True):
        symbols[position] = value
    return b"".join(symbol.to_bytes(width, "little") for symbol in symbols)


def _huffman(source: Bytes, model: Bytes, count: int, width: int, row: int) -> list[int]:
    head = struct.unpack("<BBHI", model.take(8))
    assert head[:3] == (width, 12, 0)
    assert row == 0
    symbols = model.numbers(head[3], width)
    lengths = model.numbers(head[3], 1)
    codes: dict[str, int] = {}
    at = 0
    for length, symbol in sorted(zip(lengths, symbols, strict=True)):
        codes[f"{at:012b}"[:length]] = symbol
        at += 1 << (12 - length)
    assert at == 4096
    blocks = -(-count // BLOCK)
    sizes = source.numbers(4 * blocks, 2)
    result: list[int] = []
    for block in range(blocks):
        left = min(BLOCK, count - block * BLOCK)
        step = -(-left // 4)
        for size in sizes[4 * block : 4 * block + 4]:
            data = source.take(size)
            bits = "".join(f"{byte:08b}" for byte in data)
            wanted = min(step, left)
            left -= wanted
            end = 0
            for _ in range(wanted):
                start = end
                while bits[start:end] not in codes:
                    end += 1
                result.append(codes[bits[start:end]])
            assert len(bits) - end < 8
            assert "1" not in bits[end:]
    return result


def _rans(source: Bytes, model: Bytes, count: int, width: int, row: int) -> list[int]:
    same, precision, rows, columns, wide = struct.unpack("<BBBBI", model.take(8))
    assert same == width
    column_class = model.classes(wide, columns) or [0] * max(1, row)
    tables = []
    for _ in range(rows * columns):
        (size,) = struct.unpack("<I", model.take(4))
        symbols = model.numbers(size, width)
        frequencies = model.numbers(size, 2)
        assert sum(frequencies) == 1 << precision
        slots = []
        start = 0
        for symbol, frequency in zip(symbols, frequencies, strict=True):
            slots += [(symbol, frequency, start)] * frequency
            start += frequency
        tables.append(slots)
    row_class = source.classes(-(-count // row), rows) if row else [0]
    blocks = -(-count // BLOCK)
    ends = source.numbers(blocks, 4)
    states = source.numbers(32 * blocks, 4)
    assert min(states) >= 1 << 16
    words = source.numbers(ends[-1], 2)
    result: list[int] = []
    at = 0
    for block in range(blocks):
        lanes = states[32 * block : 32 * block + 32]
        for index in range(min(BLOCK, count - block * BLOCK)):
            place = block * BLOCK + index
            kind = row_class[place // row] * columns + column_class[place % row] if row else 0
            state = lanes[index % 32]
            slot = state % (1 << precision)
            symbol, frequency, start = tables[kind][slot]
            state = frequency * (state >> precision) + slot - start
            if state < 1 << 16:
                state = state << 16 | words[at]
                at += 1
            lanes[index % 32] = state
            result.append(symbol)
        assert at == ends[block]
        assert lanes == [1 << 16] * 32
    return result
