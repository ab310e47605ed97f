"""The Triton kernel that packs symbols into words (`kernels/interleave` says how)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import check_tensor
from tersor.kernels.gemv.triton import check_device

BLOCK = 512  # words of a program
NUM_WARPS = 4


@triton.jit
def interleave_kernel(
    symbols_ptr,  # uint8 [n, k]
    words_ptr,  # int32 [n, width]
    k,
    width,
    tiles,  # of a row
    BITS: tl.constexpr,
    BW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of a row of words.

    Neighbouring lanes read neighbouring symbols, each symbol is read once, and nothing is widened
    in memory.
    """
    slices: tl.constexpr = 32 // BITS
    tile = tl.program_id(0)
    row = (tile // tiles).to(tl.int64)
    word = (tile % tiles) * BLOCK + tl.arange(0, BLOCK)
    column = word // BW * (slices * BW) + word % BW
    symbols_ptr += row * k
    packed = tl.zeros((BLOCK,), tl.uint32)
    for j in tl.static_range(slices):
        symbol = tl.load(symbols_ptr + column + j * BW, mask=column + j * BW < k, other=0)
        packed |= symbol.to(tl.uint32) << (BITS * j)
    words_ptr += row * width
    tl.store(words_ptr + word, packed.to(tl.int32, bitcast=True), mask=word < width)


def interleave(symbols: Tensor, bits: int, bw: int) -> Tensor:
    """Launches `interleave_kernel`; arguments and errors as those of `kernels.interleave`."""
    check_device(symbols.device)
    check_tensor("symbols", symbols, shape=(None, None), dtypes=(torch.uint8,))
    n, k = symbols.shape
    width = triton.cdiv(k, 32 // bits * bw) * bw
    words = torch.empty(n, width, dtype=torch.int32, device=symbols.device)
    tiles = triton.cdiv(width, BLOCK)
    if n * tiles:
        interleave_kernel[(n * tiles,)](
            symbols, words, k, width, tiles, BITS=bits, BW=bw, BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return words
