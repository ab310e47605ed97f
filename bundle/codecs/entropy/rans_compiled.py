"""The loops of the rANS codec in machine code: 32 interleaved lanes a block, one stream of words.

`docs/format.md` defines the bytes. Stored words are read from the chunk's own byte array, two bytes
at a time (the compiler makes one load of them), because a chunk may lie at any address.

Speed, one core of a Sapphire Rapids Xeon: a lane's step takes about 18 instructions, which is 4
cycles or 800 MB/s of 8-bit symbols. A merged 32-bit table word (one load less, two shifts more)
reached 740, four lanes in registers 510, a separate pass for the refills 610.
"""

from __future__ import annotations

import numpy as np

from tersor.bundle.codecs.compiled import compiled
from tersor.bundle.codecs.entropy.layout import BLOCK_SYMBOLS, LANES
from tersor.bundle.dtypes import AnyArray, ByteArray

_U32 = np.uint32
_U64 = np.uint64
_LANES = np.uint64(LANES)
_BLOCK = np.uint64(BLOCK_SYMBOLS)
_LOW = np.uint32(1 << 16)  # states are in [2^16, 2^32) between steps
_HALF = np.uint32(16)
_MASK = np.uint32(0xFFFF)


@compiled
def encode_blocks(
    symbols: AnyArray,
    tables: ByteArray,
    codes: AnyArray,
    alphabet: int,
    precision: int,
    ends: AnyArray,
    states: AnyArray,
    words: AnyArray,
) -> np.uint64:
    """Encodes all blocks, each from its last symbol to its first.

    Args:
        symbols: uint8 or uint16 [n].
        tables: uint8 [n], the table of each symbol; empty where all use table 0.
        codes: uint32 [tables * alphabet]: frequency << 16 | first slot. Frequencies are not 0 for
            any symbol that occurs.
        alphabet: 256 or 65536.
        precision: bits; frequencies of a table sum to 2^precision.
        ends: uint32 [blocks], filled with the words up to the end of each block.
        states: uint32 [blocks, LANES], filled with what the decoder starts from.
        words: uint16 [n], filled from the start.

    Returns:
        Number of words.
    """
    count = _U64(symbols.size)
    bits = _U32(precision)
    room = _U32(32 - precision)
    many = tables.size > 0
    lanes = np.empty(LANES, np.uint32)
    scratch = np.empty(BLOCK_SYMBOLS, np.uint16)
    written = _U64(0)
    for block in range(ends.size):
        first = _U64(block) * _BLOCK
        last = min(first + _BLOCK, count)
        lanes[:] = _LOW
        at = _BLOCK
        index = last
        while index > first:
            index -= _U64(1)
            turn = (index - first) % _LANES
            code = _U64(symbols[index])
            if many:
                code += _U64(tables[index]) * _U64(alphabet)
            entry = codes[code]
            frequency = entry >> _HALF
            state = lanes[turn]
            # After coding, the state must stay below 2^32. 2^precision itself never overflows it.
            if frequency < (_U32(1) << bits) and state >= (frequency << room):
                at -= _U64(1)
                scratch[at] = np.uint16(state & _MASK)
                state >>= _HALF
            quotient = state // frequency
            lanes[turn] = (quotient << bits) + (state - quotient * frequency) + (entry & _MASK)
        states[block, :] = lanes
        while at < _BLOCK:
            words[written] = scratch[at]
            written += _U64(1)
            at += _U64(1)
        ends[block] = written
    return written


@compiled
def fill_tables(
    ids: ByteArray, first: int, rows: ByteArray, columns: ByteArray, row_symbols: int
) -> None:
    """`ids[i]` = table of the chunk's symbol `first + i`: its row's part plus its column's.

    `rows` holds row class times the number of column classes, `columns` the column classes.
    """
    width = _U64(row_symbols)
    row = _U64(first) // width
    column = _U64(first) - row * width
    at = _U64(0)
    count = _U64(ids.size)
    while at < count:
        run = min(width - column, count - at)
        base = rows[row]
        for step in range(run):
            ids[at + _U64(step)] = base + columns[column + _U64(step)]
        at += run
        row += _U64(1)
        column = _U64(0)


@compiled
def fill_slots(symbols: AnyArray, frequencies: AnyArray, codes: AnyArray, values: AnyArray) -> None:
    """The decoder's table: by slot, frequency << 16 | distance from the first slot, and symbol."""
    at = _U64(0)
    for index in range(_U64(symbols.size)):
        frequency = _U32(frequencies[index])
        for distance in range(frequency):
            codes[at] = (frequency << _HALF) | _U32(distance)
            values[at] = symbols[index]
            at += _U64(1)


@compiled
def decode_block(
    stored: ByteArray,
    start: int,
    end: int,
    states: AnyArray,
    ids: ByteArray,
    codes: AnyArray,
    values: AnyArray,
    precision: int,
    out: AnyArray,
    uniform: bool,  # noqa: FBT001 - numba has no keywords at this speed
) -> bool:
    """Decodes one block into `out`.

    Args:
        stored: the chunk's bytes.
        start: of the block's words in `stored`, in bytes.
        end: of the block's words in `stored`, in bytes.
        states: uint32 [LANES]; changed.
        ids: uint8, the table of each symbol; empty where all use table 0.
        codes: uint32 [tables << precision]: by slot, frequency << 16 | distance from first slot.
        values: uint8 or uint16 [tables << precision]: the symbol of each slot.
        precision: bits of a slot.
        out: uint8 or uint16, the block's symbols.
        uniform: all lanes of a step use the table of its first symbol.

    Returns:
        Whether every word was used and every lane ended where the encoder began.
    """
    bits = _U32(precision)
    mask = (_U32(1) << bits) - _U32(1)
    at = _U64(start)
    limit = _U64(end)
    count = _U64(out.size)
    many = ids.size > 0
    done = _U64(0)
    # A step of all lanes reads at most one word each.
    while done + _LANES <= count and at + _U64(2) * _LANES <= limit:
        if many and not uniform:
            for lane in range(_LANES):
                state = states[lane]
                slot = (state & mask) + (_U32(ids[done + lane]) << bits)
                entry = codes[slot]
                out[done + lane] = values[slot]
                state = (entry >> _HALF) * (state >> bits) + (entry & _MASK)
                word = _U32(stored[at]) | (_U32(stored[at + _U64(1)]) << _U32(8))
                short = state < _LOW
                states[lane] = ((state << _HALF) | word) if short else state
                at += _U64(2) * _U64(short)
        else:
            base = _U32(ids[done]) << bits if many else _U32(0)
            for lane in range(_LANES):
                state = states[lane]
                slot = (state & mask) + base
                entry = codes[slot]
                out[done + lane] = values[slot]
                state = (entry >> _HALF) * (state >> bits) + (entry & _MASK)
                word = _U32(stored[at]) | (_U32(stored[at + _U64(1)]) << _U32(8))
                short = state < _LOW
                states[lane] = ((state << _HALF) | word) if short else state
                at += _U64(2) * _U64(short)
        done += _LANES
    # The last steps, a symbol at a time: each read is checked.
    number = _U64(0)
    while done < count:
        state = states[number]
        slot = state & mask
        if many:
            slot += _U32(ids[done]) << bits
        entry = codes[slot]
        out[done] = values[slot]
        state = (entry >> _HALF) * (state >> bits) + (entry & _MASK)
        if state < _LOW:
            if at == limit:
                return False
            state = (state << _HALF) | _U32(stored[at]) | (_U32(stored[at + _U64(1)]) << _U32(8))
            at += _U64(2)
        states[number] = state
        done += _U64(1)
        number = (number + _U64(1)) % _LANES
    if at != limit:
        return False
    return bool((states == _LOW).all())


@compiled
def decode_blocks(
    stored: ByteArray,
    words_at: int,
    ends: AnyArray,
    states: AnyArray,
    rows: ByteArray,
    columns: ByteArray,
    row_symbols: int,
    codes: AnyArray,
    values: AnyArray,
    precision: int,
    uniform: bool,  # noqa: FBT001 - as above
    out: AnyArray,
) -> int:
    """Decodes all blocks of a chunk into `out`, in one call.

    Between calls a thread holds the interpreter, and to wait for it takes as long as half a block:
    with a call for each block two threads decode 1.3 times as fast as one.

    Args:
        stored: the chunk's bytes.
        words_at: where its words begin.
        ends: uint32 [blocks], the words up to the end of each block.
        states: uint32 [blocks, LANES]; changed.
        rows: of `fill_tables`; empty where there is one table.
        columns: of `fill_tables`.
        row_symbols: of `fill_tables`.
        codes: of `decode_block`, as are `values`, `precision` and `uniform`.
        values: see there.
        precision: see there.
        uniform: see there.
        out: uint8 or uint16, the chunk's symbols.

    Returns:
        The first block that does not decode, or -1.
    """
    many = rows.size > 0
    ids = np.empty(BLOCK_SYMBOLS if many else 0, np.uint8)
    start = words_at
    for block in range(ends.size):
        first = block * BLOCK_SYMBOLS
        last = min(first + BLOCK_SYMBOLS, out.size)
        end = words_at + 2 * int(ends[block])
        part = ids[: last - first] if many else ids
        if many:
            fill_tables(part, first, rows, columns, row_symbols)
        if not decode_block(
            stored, start, end, states[block], part, codes, values, precision,
            out[first:last], uniform,
        ):  # fmt: skip
            return block
        start = end
    return -1
