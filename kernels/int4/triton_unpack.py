"""Codes of four or six bits raised to bf16 numbers, the part that all kernels of words share.

bf16 0x4300 | q is 128 + q for q below 128, since the last bit of its 7-bit mantissa is worth 1
there. So a code needs to stand alone in the low bits of a 16-bit half, and one LOP3 makes two
numbers of the two halves of a register: (a & mask) | 0x43004300. PRMT first gathers the low (high)
halves of two neighbouring words, which hold the same four columns of both.

Six bits: `high` holds, beside each word, the two high bits of its eight codes in 16 bits, where a
LOP3 that selects by 0x0F0F0F0F puts those of two codes above their nibbles at once:

    bits of high   15 14   13 12   11 10   9 8    7 6    5 4    3 2    1 0
    of nibble        3       2       6      7      1      0      4      5
"""

import triton
import triton.language as tl

from tersor.kernels.int4 import packing

NIBBLES_ASM = tl.constexpr("""
{
    .reg .b32 lo, hi, t;
    prmt.b32 lo, $8, $9, 0x5410;
    prmt.b32 hi, $8, $9, 0x7632;
    lop3.b32 $0, lo, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, lo, 4;
    lop3.b32 $1, t, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, lo, 8;
    lop3.b32 $2, t, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, lo, 12;
    lop3.b32 $3, t, 0x000F000F, 0x43004300, 0xEA;
    lop3.b32 $4, hi, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, hi, 4;
    lop3.b32 $5, t, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, hi, 8;
    lop3.b32 $6, t, 0x000F000F, 0x43004300, 0xEA;
    shr.u32 t, hi, 12;
    lop3.b32 $7, t, 0x000F000F, 0x43004300, 0xEA;
}
""")
# LOP3 0xE4 selects: a where the mask (its third operand) is 1, b elsewhere.
SIX_BITS_ASM = tl.constexpr("""
{
    .reg .b32 lo, hi, two, t;
    prmt.b32 lo, $8, $9, 0x5410;
    prmt.b32 hi, $8, $9, 0x7632;
    lop3.b32 t, lo, $10, 0x0F0F0F0F, 0xE4;
    lop3.b32 $0, t, 0x003F003F, 0x43004300, 0xEA;
    shr.u32 t, t, 8;
    lop3.b32 $2, t, 0x003F003F, 0x43004300, 0xEA;
    shr.u32 t, lo, 4;
    shr.u32 two, $10, 2;
    lop3.b32 t, t, two, 0x0F0F0F0F, 0xE4;
    lop3.b32 $1, t, 0x003F003F, 0x43004300, 0xEA;
    shr.u32 t, t, 8;
    lop3.b32 $3, t, 0x003F003F, 0x43004300, 0xEA;
    shl.b32 two, $10, 2;
    lop3.b32 t, hi, two, 0x0F0F0F0F, 0xE4;
    lop3.b32 $4, t, 0x003F003F, 0x43004300, 0xEA;
    shr.u32 t, t, 8;
    lop3.b32 $6, t, 0x003F003F, 0x43004300, 0xEA;
    shr.u32 t, hi, 4;
    shl.b32 two, $10, 4;
    lop3.b32 t, t, two, 0x0F0F0F0F, 0xE4;
    lop3.b32 $5, t, 0x003F003F, 0x43004300, 0xEA;
    shr.u32 t, t, 8;
    lop3.b32 $7, t, 0x003F003F, 0x43004300, 0xEA;
}
""")
HIGH_SHIFTS = tl.constexpr(packing.HIGH_SHIFTS)


@triton.jit
def unpack_nibbles(words):
    """Unpacks words int32 [BN, BW] to eight bf16 [BN, BW] of 128 + code, by inline assembly."""
    return tl.inline_asm_elementwise(
        NIBBLES_ASM,
        "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r",
        [words],
        dtype=(tl.bfloat16,) * 8,
        is_pure=True,
        pack=2,
    )


@triton.jit
def unpack_six_bits(words, high):
    """As `unpack_nibbles`, with the high bits int16 [BN, BW] of the codes."""
    return tl.inline_asm_elementwise(
        SIX_BITS_ASM,
        "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r",
        [words, high],
        dtype=(tl.bfloat16,) * 8,
        is_pure=True,
        pack=2,
    )


@triton.jit
def code_of(words, high, j: tl.constexpr, BITS: tl.constexpr):
    """Code int32 [BN, BW] of nibble j; `high` int16 [BN, BW] counts if BITS is 6."""
    code = (words >> (4 * j)) & 15
    if BITS == 6:
        code |= ((high.to(tl.int32) >> HIGH_SHIFTS[j]) & 3) << 4
    return code


@triton.jit
def raised_code(words, high, j: tl.constexpr, BITS: tl.constexpr, COMPUTE: tl.constexpr):
    """128 + code of nibble j, [BN, BW] in COMPUTE: what the assembly makes, in plain Triton."""
    code = code_of(words, high, j, BITS)
    if COMPUTE == tl.bfloat16:  # noqa: SIM300
        raised = (code | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        raised = (code + 128).to(COMPUTE)
    return raised
