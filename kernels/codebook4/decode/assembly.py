"""PTX that decodes words of codes by looking bytes up in registers."""

from __future__ import annotations

from itertools import chain

# Operands: $0..$7 are the slices, $8 and $9 two neighbouring words, $10, $12, …, $24 the eight
# words of the table (every other: each comes once for either word).
_LOW_BYTES = ("$10, $12", "$14, $16")  # of values 0..7 and 8..15
_HIGH_BYTES = ("$18, $20", "$22, $24")
CONSTRAINTS = ",".join(["=&r"] * 8 + ["r"] * 18)


def _half(first: int, *, mirrored: bool) -> tuple[str, ...]:
    """Decodes the four codes in the low halves of `code` and `upper`: slices first, first + 2.

    PRMT takes four of the eight bytes of two registers, so values 0..7 and 8..15 are looked up
    apart, and the codes' high bits choose between both.
    """
    low = (
        (f"prmt.b32 l, {_LOW_BYTES[0]}, code;",)
        if mirrored
        else (
            f"prmt.b32 a, {_LOW_BYTES[0]}, code;",
            f"prmt.b32 b, {_LOW_BYTES[1]}, code;",
            "prmt.b32 l, a, b, upper;",
        )
    )
    return (
        *low,
        f"prmt.b32 a, {_HIGH_BYTES[0]}, code;",
        f"prmt.b32 b, {_HIGH_BYTES[1]}, code;",
        "prmt.b32 h, a, b, upper;",
        f"prmt.b32 ${first}, l, h, 0x5140;",
        f"prmt.b32 ${first + 2}, l, h, 0x7362;",
    )


def assembly(*, mirrored: bool) -> str:
    """Two neighbouring words to eight bf16 pairs, nibble j of both in pair j.

    First bytes are made of a nibble of each word, even nibbles in one register and odd ones in
    another: neighbours in a register are then neighbours in K, as the tensor core takes them.
    `code` has the low three bits of each code; `upper`, for place p of a half, p or p + 4 by its
    high bit.
    """
    gather = {
        0: ("shl.b32 t, $9, 4;", "lop3.b32 m, $8, t, 0x0F0F0F0F, 0xE4;"),
        1: ("shr.u32 t, $8, 4;", "lop3.b32 m, t, $9, 0x0F0F0F0F, 0xE4;"),
    }
    lines = chain.from_iterable(
        (
            *gather[odd],
            "and.b32 code, m, 0x77777777;",
            "shr.u32 t, m, 1;",
            "lop3.b32 upper, t, 0x44444444, 0x32103210, 0xEA;",
            *_half(odd, mirrored=mirrored),
            "shr.u32 code, code, 16;",
            "shr.u32 upper, upper, 16;",
            *_half(odd + 4, mirrored=mirrored),
        )
        for odd in (0, 1)
    )
    return "{\n.reg .b32 t, m, code, upper, a, b, l, h;\n" + "\n".join(lines) + "\n}"
