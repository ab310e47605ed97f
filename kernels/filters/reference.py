"""The filters in plain torch: the definition, and what runs where there is no kernel."""

from __future__ import annotations

import torch
from torch import Tensor

_UNSIGNED = {2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def join_floats(streams: Tensor, symbol_bytes: int, rows: int) -> Tensor:
    """Unsigned integers [symbols]; arguments as those of `filters.join_floats`."""
    split = streams[rows:].view(symbol_bytes, -1)
    exponents = split[0]
    if rows:
        exponents = (exponents.view(rows, -1) + streams[:rows, None]).view(-1)  # modulo 256
    word = exponents.to(torch.int64)
    for stream in split[1:]:
        word = (word << 8) | stream
    bits = 8 * symbol_bytes
    lower = (word >> 1) & ((1 << (bits - 1)) - 1)  # `>>` copies the sign of a word of 64 bits
    rotated = lower | ((word & 1) << (bits - 1))
    return rotated.view(torch.uint64) if symbol_bytes == 8 else rotated.to(_UNSIGNED[symbol_bytes])


def join_nibbles(stream: Tensor, symbols: int) -> Tensor:
    """uint8 [ceil(symbols / 2)], the earlier symbol in the low half, to uint8 [symbols]."""
    return torch.stack((stream & 15, stream >> 4), dim=-1).view(-1)[:symbols]


def join_float8(streams: Tensor, symbols: int, mantissa_bits: int) -> tuple[Tensor, Tensor]:
    """Joins `f8_split`.

    Args:
        streams: uint8 [symbols + ceil(symbols / 2)]: exponents, then signs and mantissas in
            nibbles.
        symbols: how many there are.
        mantissa_bits: 3 of e4m3, 2 of e5m2.

    Returns:
        uint8 [symbols], and whether a bit is set that no symbol has (bool, a scalar).
    """
    exponents, packed = streams[:symbols], streams[symbols:]
    nibbles = join_nibbles(packed, symbols)
    bad = unused_bits(packed[-1:], 4 * (symbols % 2))
    bad |= (exponents >> (7 - mantissa_bits) != 0).any()
    bad |= (nibbles >> (mantissa_bits + 1) != 0).any()
    sign = (nibbles >> mantissa_bits) << 7
    mantissa = nibbles & ((1 << mantissa_bits) - 1)
    return (exponents << mantissa_bits) | sign | mantissa, bad


def join_bits(streams: Tensor, symbols: int, bits: int) -> tuple[Tensor, Tensor]:
    """Joins `bit_planes`.

    Args:
        streams: uint8 [bits * ceil(symbols / 8)], the highest bit of all symbols first; of eight
            symbols a byte the earliest has the lowest bit.
        symbols: how many there are.
        bits: of a symbol, 1 to 8.

    Returns:
        uint8 [symbols], and whether an unused bit of a last byte is set (bool, a scalar).
    """
    split = streams.view(bits, -1)
    shifts = torch.arange(8, dtype=torch.uint8, device=streams.device)
    joined = torch.zeros(split.shape[1], 8, dtype=torch.uint8, device=streams.device)
    for stream in split:
        joined = (joined << 1) | ((stream[:, None] >> shifts) & 1)
    return joined.view(-1)[:symbols], unused_bits(split[:, -1], -symbols % 8)


def unused_bits(last: Tensor, bits: int) -> Tensor:
    """Whether one of the highest `bits` bits of any of these bytes is set: bool, a scalar."""
    return (last.to(torch.int32) >> (8 - bits) != 0).any()
