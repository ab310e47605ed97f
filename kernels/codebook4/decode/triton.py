"""How a kernel gets eight slices of weights out of words of codes, and scales out of words."""

from __future__ import annotations

import triton
import triton.language as tl

from tersor.kernels.codebook4.decode.assembly import CONSTRAINTS, assembly
from tersor.kernels.codebook4.lookup import PAIRS

_ASSEMBLY = tl.constexpr(assembly(mirrored=False))
_MIRRORED_ASSEMBLY = tl.constexpr(assembly(mirrored=True))
_CONSTRAINTS = tl.constexpr(CONSTRAINTS)
_PAIRS = tl.constexpr(PAIRS)


@triton.jit
def load_table(lookup_ptr):
    """The eight words of the table as tensors [1, 1], for `decode_words`.

    Tensors, since the compiler turns words into the form of a dot's operand before they are
    decoded only if all that decoding takes was loaded as one; with scalars the decoded weights go
    through shared memory: 4.2 instructions a weight instead of 3.4.
    """
    at = lookup_ptr + tl.zeros((1, 1), tl.int32)
    return (
        tl.load(at),
        tl.load(at + 1),
        tl.load(at + 2),
        tl.load(at + 3),
        tl.load(at + 4),
        tl.load(at + 5),
        tl.load(at + 6),
        tl.load(at + 7),
    )


@triton.jit
def decode_words(words, table, MIRRORED: tl.constexpr):
    """Eight slices bf16 [BN, BW] of words int32 [BN, BW], by inline assembly.

    `table` is what `load_table` gives.
    """
    if MIRRORED:
        code: tl.constexpr = _MIRRORED_ASSEMBLY
    else:
        code: tl.constexpr = _ASSEMBLY
    return tl.inline_asm_elementwise(
        code,
        _CONSTRAINTS,
        [
            words,
            table[0],
            table[1],
            table[2],
            table[3],
            table[4],
            table[5],
            table[6],
            table[7],
        ],
        dtype=(tl.bfloat16,) * 8,
        is_pure=True,
        pack=2,
    )


@triton.jit
def decode_pairs(words, lookup_ptr, DTYPE: tl.constexpr):
    """Eight slices [BN, BW] of words int32 [BN, BW] in DTYPE, bf16 or fp32, to the same bits.

    One load decodes a byte, which is two codes.
    """
    pairs_ptr = lookup_ptr + _PAIRS
    first = tl.load(pairs_ptr + (words & 255))
    second = tl.load(pairs_ptr + ((words >> 8) & 255))
    third = tl.load(pairs_ptr + ((words >> 16) & 255))
    fourth = tl.load(pairs_ptr + ((words >> 24) & 255))
    return (
        _low(first, DTYPE),
        _high(first, DTYPE),
        _low(second, DTYPE),
        _high(second, DTYPE),
        _low(third, DTYPE),
        _high(third, DTYPE),
        _low(fourth, DTYPE),
        _high(fourth, DTYPE),
    )


@triton.jit
def _low(pairs, DTYPE: tl.constexpr):
    """The bf16 in the low halves of int32, in DTYPE."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        value = pairs.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        value = _low_or_high(pairs, 0)
    return value


@triton.jit
def _high(pairs, DTYPE: tl.constexpr):
    """The bf16 in the high halves of int32, in DTYPE."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        value = (pairs >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        value = _low_or_high(pairs, 1)
    return value


@triton.jit
def load_scale_word(pointers, WIDTH: tl.constexpr):
    """A word of scales, from pointers [BN]: int32 [BN, WIDTH], the same in every column.

    Broadcast before it is taken apart: the compiler then brings the word, and not every scale, into
    the form of an accumulator. Each such change of form costs two barriers.
    """
    word = tl.load(pointers)[:, None]
    return tl.broadcast_to(word, (word.shape[0], WIDTH))


@triton.jit
def scale_in_word(word, PLACE: tl.constexpr, SCALE: tl.constexpr):
    """Scale number PLACE of a word, in float32.

    Bytes are converted by hand: a type for e4m3 is missing before sm_89.
    """
    if SCALE == "e8m0":
        bits = tl.maximum((_byte_on_top(word, PLACE) >> 1) & 0x7F800000, 0x00400000)
        scale = bits.to(tl.float32, bitcast=True)  # at least 2^-127, which is subnormal
    elif SCALE == "e4m3":
        # Its exponent is biased by 7 and float32's by 127, which also makes subnormals right.
        bits = (_byte_on_top(word, PLACE) >> 4) & -0x78100000
        scale = bits.to(tl.float32, bitcast=True) * 2.0**120
    elif SCALE == "bf16":
        scale = _low_or_high(word, PLACE)
    else:
        scale = word.to(tl.float32, bitcast=True)
    return scale


@triton.jit
def _byte_on_top(word, BYTE: tl.constexpr):
    """Byte BYTE of int32 in the highest place; below it, anything."""
    return word << (24 - 8 * BYTE)


@triton.jit
def _low_or_high(word, HALF: tl.constexpr):
    """The bf16 in half HALF of int32, in float32."""
    bits = word << 16 if HALF == 0 else word & -65536
    return bits.to(tl.float32, bitcast=True)
