"""Sparse outliers inside a kernel of skinny products."""

import triton
import triton.language as tl

from tersor.kernels.outliers import slices

CHUNK = tl.constexpr(slices.CHUNK)
SLICE_ROWS = tl.constexpr(slices.SLICE_ROWS)


@triton.jit
def add_outliers(
    acc,  # float32 [BN, BM]
    row,  # int64 [BN], any rows of the weight
    tokens,  # int64 [BM], neighbours
    split,
    entries_ptr,  # int32 [E], see slices.py
    starts_ptr,  # int32 [ceil(n / SLICE_ROWS) + 1]
    columns_ptr,  # bf16 [k, width], as `token_columns` makes it
    width,
    m,
    BN: tl.constexpr,
    BM: tl.constexpr,
):
    """acc[r, i] + sum of v * x[i, c] over the outliers (c, v) of row[r] that are this split's.

    A lane takes a row and adds its entries one by one, so a sum has the same bits for any BM, and
    for one token as for many. Splits take turns at the chunks of a row, whatever their columns.
    """
    slice_start = tl.load(starts_ptr + row // SLICE_ROWS)
    end = (tl.load(starts_ptr + row // SLICE_ROWS + 1) - slice_start) // SLICE_ROWS
    row_ptrs = entries_ptr + slice_start + row % SLICE_ROWS
    step = tl.num_programs(2) * CHUNK
    if m == 1:
        single = tl.zeros((BN,), dtype=tl.float32)
        for first in range(split * CHUNK, tl.max(end, axis=0), step):
            for i in tl.static_range(CHUNK):
                column, value = _entry(row_ptrs, first, i, end)
                single += value * tl.load(columns_ptr + column).to(tl.float32)
        acc += single[:, None]  # all BM columns: only the one token's is stored
    else:
        several = tl.zeros((BN, BM), dtype=tl.float32)
        for first in range(split * CHUNK, tl.max(end, axis=0), step):
            for i in tl.static_range(CHUNK):
                column, value = _entry(row_ptrs, first, i, end)
                x = tl.load(columns_ptr + (column * width)[:, None] + tokens[None, :])
                several += value[:, None] * x.to(tl.float32)
        acc += several
    return acc


@triton.jit
def _entry(row_ptrs, first, i: tl.constexpr, end):
    """Column int64 and value float32 [BN] of each row's entry first + i; 0 beyond its end."""
    entry = tl.load(row_ptrs + (first + i) * SLICE_ROWS, mask=first < end, other=0)
    return (entry & 0xFFFF).to(tl.int64), (entry & -65536).to(tl.float32, bitcast=True)
