"""Triton kernels that decode `rans` chunks on a GPU: one block of 32 lanes per warp.

`reference.py` defines what they compute, `batch.py` how their operands lie in memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import check_tensor
from tersor.kernels.entropy.batch import BLOCK_FIELDS, ENDLESS_ROW, RansBatch, TableChoice
from tersor.kernels.entropy.chunk import BLOCK_SYMBOLS, LANES, LOW, MAX_PRECISION, SYMBOL_DTYPES
from tersor.kernels.gemv.triton import check_device, has_inline_asm

FIELDS = tl.constexpr(len(BLOCK_FIELDS))
MAX_SYMBOLS = tl.constexpr(BLOCK_SYMBOLS)
MAX_BITS = tl.constexpr(MAX_PRECISION)
MAX_ROW = tl.constexpr(ENDLESS_ROW)
L = tl.constexpr(LANES)
LOWEST = tl.constexpr(LOW)
# One warp: its lanes are the block's, and nothing waits for another warp. Blocks that share a warp
# would save some of its instructions, and latency is hidden by warps (docs/kernels.md).
NUM_WARPS = 1
PATCHES = 1024  # of a program


@triton.jit
def _popcount(bits):
    """Ones of each int32."""
    return tl.inline_asm_elementwise(
        "popc.b32 $0, $1;", "=r,r", [bits], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _ranks(short, lane, USE_ASM: tl.constexpr):
    """How many lower lanes are short too, and how many lanes are."""
    if USE_ASM:
        # The sum of single bits is one instruction (REDUX) where a prefix sum is five shuffles.
        bits = tl.sum(tl.where(short, 1 << lane, 0), axis=0)
        return _popcount(bits & ((1 << lane) - 1)), _popcount(bits)
    else:  # noqa: RET505  # Triton compiles what follows an `if`, too
        ones = short.to(tl.int32)
        return tl.cumsum(ones, axis=0) - ones, tl.sum(ones, axis=0)


@triton.jit
def _decode(entry, state, bits, NARROW: tl.constexpr):
    """The symbol of an entry (with bits to cut off above it), and the state after it."""
    quotient = state >> bits
    if NARROW:
        return entry >> 12, (entry & 0xFFF) * quotient + (quotient + (entry >> 20))
    else:  # noqa: RET505  # as above
        code = entry.to(tl.uint32)
        return (entry >> 32).to(tl.uint32), (code >> 16) * quotient + (code & 0xFFFF)


@triton.jit
def _refill(state, short, lane, window, used, USE_ASM: tl.constexpr):
    """Gives each short lane its word; `used` words of the window are gone before and after."""
    rank, count = _ranks(short, lane, USE_ASM)
    index = used + rank  # below 64, as `used` is below 32
    pair = tl.gather(window, index & 31, axis=0)
    word = (pair << ((index >> 1) & 16).to(tl.uint32)) >> 16
    return tl.where(short, (state << 16) | word, state), used + count


@triton.jit
def _is_sane(
    words_at, words_end, out_at, symbols, bits, slots_at, tables, row, last_row, column, width,
    columns_at, stride, num_words, num_slots, num_rows, num_columns, num_symbols,
):  # fmt: skip
    """Whether a block described so stays within the operands."""
    sane = (words_at >= 0) & (words_at <= words_end) & (words_end <= num_words)
    sane &= words_end - words_at <= MAX_SYMBOLS  # a symbol takes one word at most
    sane &= (symbols >= 0) & (symbols <= MAX_SYMBOLS)
    sane &= (out_at >= 0) & (out_at <= num_symbols - symbols)
    sane &= (bits >= 1) & (bits <= MAX_BITS) & (tables >= 1) & (tables <= num_slots)
    sane &= (slots_at >= 0) & (slots_at <= num_slots - (tables << bits))
    sane &= (row >= 0) & (row <= last_row) & (last_row < tl.minimum(num_rows, MAX_ROW))
    sane &= (width >= 1) & (width <= MAX_ROW) & (column >= 0) & (column < width)
    sane &= (stride >= 0) & (stride <= 1) & (columns_at >= 0)
    # A step, and the one whose classes are asked for ahead, may begin within the last column.
    return sane & (columns_at < num_columns - stride * (width + 2 * L - 1))


@triton.jit(do_not_specialize=["num_words", "num_slots", "num_rows", "num_columns", "num_symbols"])
def rans_decode_kernel(
    words_ptr,  # uint16 [num_words]
    states_ptr,  # uint32 [blocks, 32]
    blocks_ptr,  # int64 [blocks, FIELDS], see BLOCK_FIELDS
    slots_ptr,  # uint32 if NARROW, else uint64 [num_slots]
    rows_ptr,  # int32 [num_rows]
    columns_ptr,  # int32 [num_columns]
    out_ptr,  # uint8 or uint16 [num_symbols]
    errors_ptr,  # int32 [blocks]
    num_words,
    num_slots,
    num_rows,
    num_columns,
    num_symbols,
    NARROW: tl.constexpr,  # how table entries are packed
    BY_COLUMN: tl.constexpr,  # the lanes of a step share a row, but not a column class
    BY_SYMBOL: tl.constexpr,  # they share neither; without both, they share their table
    USE_ASM: tl.constexpr,  # NVIDIA
):
    """Decodes block program_id(0), and says in `errors` if it does not decode.

    The words of a block come through a window in registers: lane l holds words l (high half) and
    32 + l of it, and one of the 32 words that follow, asked for about five steps before they are
    needed. A step's words then come by one shuffle, and no step waits for memory.
    """
    block = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, L)
    field = blocks_ptr + block * FIELDS
    words_at, words_end = tl.load(field), tl.load(field + 1)
    out_at, symbols = tl.load(field + 2), tl.load(field + 3)
    bits, slots_at, tables = tl.load(field + 4), tl.load(field + 5), tl.load(field + 6)
    row, last_row, column = tl.load(field + 7), tl.load(field + 8), tl.load(field + 9)
    width = tl.load(field + 10)
    columns_at, stride = tl.load(field + 11), tl.load(field + 12)
    sane = _is_sane(
        words_at, words_end, out_at, symbols, bits, slots_at, tables, row, last_row, column, width,
        columns_at, stride, num_words, num_slots, num_rows, num_columns, num_symbols,
    )  # fmt: skip
    if not sane:
        tl.store(errors_ptr + block, 1)
        return
    num_block_words = (words_end - words_at).to(tl.int32)
    count = symbols.to(tl.int32)
    slots_ptr += slots_at
    out_ptr += out_at
    top = ((tables - 1) << bits).to(tl.uint32)  # offset of the last table
    bits = bits.to(tl.uint32)
    mask = (tl.full((), 1, tl.uint32) << bits) - 1
    row, last_row, width = row.to(tl.int32), last_row.to(tl.int32), width.to(tl.int32)
    column, stride = column.to(tl.int32), stride.to(tl.int32)
    columns_ptr += columns_at

    words_ptr += words_at + lane
    left = num_block_words - lane  # words from this lane's first on
    window = tl.load(words_ptr, mask=left > 0, other=0).to(tl.uint32) << 16
    window |= tl.load(words_ptr + L, mask=left > L, other=0).to(tl.uint32)
    ahead = tl.load(words_ptr + 2 * L, mask=left > 2 * L, other=0)
    fetched = 3 * L
    used = 0

    full = count // L * L
    state = tl.load(states_ptr + block * L + lane)
    row_offset = tl.zeros((), tl.uint32)
    column_offset = tl.zeros((L,), tl.uint32)
    next_offset = tl.zeros((), tl.uint32)
    row_end = full
    if BY_SYMBOL:
        column += lane
        row += column // width
        column = column % width
        row_step, column_step = L // width, L % width
        row_offset = tl.load(rows_ptr + tl.minimum(row, last_row)).to(tl.uint32)
        column_offset = tl.load(columns_ptr + column * stride).to(tl.uint32)
    else:
        row_end = width - column
        row_offset = tl.load(rows_ptr + row).to(tl.uint32)
        row = tl.minimum(row + 1, last_row)
        next_offset = tl.load(rows_ptr + row).to(tl.uint32)
        column_ptr = columns_ptr + (column + lane) * stride
        if BY_COLUMN:
            column_offset = tl.load(column_ptr).to(tl.uint32)
    done = 0
    at = lane
    while done < full:
        stop = tl.minimum(row_end, full)
        while (done < stop) & (used < L):
            slot = (state & mask) | tl.minimum(row_offset + column_offset, top)
            # The next step's classes: nothing waits for them in this one.
            if BY_SYMBOL:
                column += column_step
                row += row_step + (column >= width).to(tl.int32)
                column = tl.where(column >= width, column - width, column)
                row_offset = tl.load(rows_ptr + tl.minimum(row, last_row)).to(tl.uint32)
                column_offset = tl.load(columns_ptr + column * stride).to(tl.uint32)
            elif BY_COLUMN:
                column_ptr += L * stride
                column_offset = tl.load(column_ptr).to(tl.uint32)
            symbol, state = _decode(tl.load(slots_ptr + slot), state, bits, NARROW)
            tl.store(out_ptr + at, symbol.to(out_ptr.dtype.element_ty))
            state, used = _refill(state, state < LOWEST, lane, window, used, USE_ASM)
            done += L
            at += L
        if used >= L:
            window = (window << 16) | ahead.to(tl.uint32)
            ahead = tl.load(words_ptr + fetched, mask=left > fetched, other=0)
            fetched += L
            used -= L
        if not BY_SYMBOL:  # noqa: SIM102  # one is known when compiled, the other is not
            if done >= row_end:
                row_offset = next_offset
                row = tl.minimum(row + 1, last_row)
                next_offset = tl.load(rows_ptr + row).to(tl.uint32)
                row_end += width
                if BY_COLUMN:
                    column_ptr = columns_ptr + lane * stride
                    column_offset = tl.load(column_ptr).to(tl.uint32)
    if full < count:
        inside = lane < count - full
        slot = (state & mask) | tl.minimum(row_offset + column_offset, top)
        symbol, moved = _decode(tl.load(slots_ptr + slot), state, bits, NARROW)
        tl.store(out_ptr + at, symbol.to(out_ptr.dtype.element_ty), mask=inside)
        state = tl.where(inside, moved, state)
        short = inside & (state < LOWEST)
        state, used = _refill(state, short, lane, window, used, USE_ASM)
    left_over = (fetched - 3 * L + used != num_block_words).to(tl.int32)
    tl.store(errors_ptr + block, left_over | tl.max((state != LOWEST).to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["num_symbols", "patches"])
def rans_patch_kernel(
    out_ptr,  # [num_symbols]
    positions_ptr,  # int64 [patches]
    values_ptr,  # [patches]
    num_symbols,
    patches,
    BLOCK: tl.constexpr,
):
    """out[positions[i]] = values[i]; positions outside are skipped. Grid: (patches / BLOCK,)."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < patches
    position = tl.load(positions_ptr + index, mask=inside, other=-1)
    value = tl.load(values_ptr + index, mask=inside, other=0)
    tl.store(out_ptr + position, value, mask=(position >= 0) & (position < num_symbols))


def decode(batch: RansBatch) -> tuple[Tensor, Tensor]:
    """Decodes a batch on a GPU (or in Triton's interpreter) by one launch, and one for patches.

    Returns:
        Symbols [batch.symbols] in the dtype of `patch_values`, and int32 [blocks]: not 0 where a
        block does not decode. Whatever the tensors hold, nothing outside of them is accessed.

    Raises:
        LayoutError: a tensor has another shape, dtype or device, or is not contiguous.
    """
    check_device(batch.words.device)
    out = torch.empty(batch.symbols, dtype=batch.patch_values.dtype, device=batch.words.device)
    return out, decode_into(batch, out)


def decode_into(batch: RansBatch, out: Tensor) -> Tensor:
    """Decodes a batch into `out` [n] in the dtype of `patch_values`; int32 [blocks] as `decode`."""
    device = batch.words.device
    check_device(device)
    _check(batch)
    dtype = batch.patch_values.dtype
    check_tensor("out", out, shape=(None,), dtypes=(dtype,), device=device)
    count = batch.states.shape[0]
    errors = torch.empty(count, dtype=torch.int32, device=device)
    if count:
        rans_decode_kernel[(count,)](
            batch.words,
            batch.states,
            batch.blocks,
            batch.slots,
            batch.rows,
            batch.columns,
            out,
            errors,
            batch.words.numel(),
            batch.slots.numel(),
            batch.rows.numel(),
            batch.columns.numel(),
            out.numel(),
            NARROW=batch.slots.dtype == torch.uint32,
            BY_COLUMN=batch.choice == TableChoice.COLUMN,
            BY_SYMBOL=batch.choice == TableChoice.SYMBOL,
            USE_ASM=has_inline_asm(device),
            num_warps=NUM_WARPS,
        )
    patches = batch.patch_positions.numel()
    if patches:
        rans_patch_kernel[(triton.cdiv(patches, PATCHES),)](
            out,
            batch.patch_positions,
            batch.patch_values,
            out.numel(),
            patches,
            BLOCK=PATCHES,
            num_warps=4,
        )
    return errors


def _check(batch: RansBatch) -> None:
    blocks, patches = batch.states.shape[0], batch.patch_positions.numel()
    for name, shape, dtypes in (
        ("words", (None,), (torch.uint16,)),
        ("states", (None, LANES), (torch.uint32,)),
        ("blocks", (blocks, len(BLOCK_FIELDS)), (torch.int64,)),
        ("slots", (None,), (torch.uint32, torch.uint64)),
        ("rows", (None,), (torch.int32,)),
        ("columns", (None,), (torch.int32,)),
        ("patch_positions", (None,), (torch.int64,)),
        ("patch_values", (patches,), SYMBOL_DTYPES),
    ):
        tensor = getattr(batch, name)
        check_tensor(name, tensor, shape=shape, dtypes=dtypes, device=batch.words.device)
