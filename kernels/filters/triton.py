"""Triton kernels that join the streams of filters; `reference.py` defines what they compute."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.errors import LayoutError

# Bytes of each stream that a program reads: 16 a lane of four warps, the widest load.
BLOCK = 2048
NUM_WARPS = 4
MAX_PROGRAMS = (1 << 31) - 1  # of a launch

_UNSIGNED = {2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


@triton.jit
def join_floats_kernel(
    base_ptr,  # uint8 [rows], read if HAS_BASE
    split_ptr,  # uint8 [WIDTH, symbols]
    out_ptr,  # unsigned [symbols], of WIDTH bytes
    symbols,
    width,  # symbols of a row
    tiles,  # of a row
    WIDTH: tl.constexpr,
    HAS_BASE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of a row: its bytes put together, and rotated right by a bit."""
    tile = tl.program_id(0)
    row = (tile // tiles).to(tl.int64)
    column = (tile % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    first = tl.load(split_ptr + at, mask=inside, other=0)
    if HAS_BASE:
        first = (first + tl.load(base_ptr + row)).to(tl.uint8)
    word = first.to(out_ptr.dtype.element_ty)
    for _ in tl.static_range(1, WIDTH):
        split_ptr += symbols
        word = (word << 8) | tl.load(split_ptr + at, mask=inside, other=0).to(word.dtype)
    tl.store(out_ptr + at, (word >> 1) | (word << (8 * WIDTH - 1)), mask=inside)


@triton.jit
def join_nibbles_kernel(
    stream_ptr,  # uint8 [size], size = ceil(symbols / 2)
    out_ptr,  # uint8 [symbols]
    size,
    symbols,
    BLOCK: tl.constexpr,
):
    """out[2i] = low half of byte i, out[2i + 1] = high half. Grid: (bytes / BLOCK,)."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    packed = tl.load(stream_ptr + at, mask=at < size, other=0)
    out = 2 * first + tl.arange(0, 2 * BLOCK)
    tl.store(out_ptr + out, tl.interleave(packed & 15, packed >> 4), mask=out < symbols)


def join_floats(streams: Tensor, symbol_bytes: int, rows: int) -> Tensor:
    """Launches `join_floats_kernel`; arguments as those of `filters.join_floats`.

    Raises:
        LayoutError: there are more rows than a launch has programs.
    """
    split = streams[rows:]
    symbols = split.numel() // symbol_bytes
    width = symbols // max(1, rows)
    tiles = triton.cdiv(width, BLOCK)
    out = torch.empty(symbols, dtype=_UNSIGNED[symbol_bytes], device=streams.device)
    programs = max(1, rows) * tiles
    if programs > MAX_PROGRAMS:
        raise LayoutError(f"{rows} rows of {width} symbols are too many to be joined in one launch")
    if programs:
        join_floats_kernel[(programs,)](
            streams, split, out, symbols, width, tiles,
            WIDTH=symbol_bytes, HAS_BASE=rows > 0, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    return out


def join_nibbles(stream: Tensor, symbols: int) -> Tensor:
    """Launches `join_nibbles_kernel`: uint8 [ceil(symbols / 2)] to uint8 [symbols]."""
    out = torch.empty(symbols, dtype=torch.uint8, device=stream.device)
    if symbols:
        grid = (triton.cdiv(stream.numel(), BLOCK),)
        join_nibbles_kernel[grid](
            stream, out, stream.numel(), symbols, BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return out
