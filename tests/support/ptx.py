"""Runs a few lines of PTX assembly in Python: what inline assembly computes, without a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch

_WORD = 0xFFFFFFFF


def run(assembly: str, inputs: Mapping[str, int]) -> Mapping[str, int]:
    """All registers of 32 bits after straight-line `assembly`, by name; `$n` are operands.

    Raises:
        KeyError: an instruction that is not known here, or a register that was never written.
    """
    registers = dict(inputs)
    for statement in re.sub(r"\.reg[^;]*;|[{}]", "", assembly).split(";"):
        if not statement.strip():
            continue
        operation, operands = statement.split(None, 1)
        target, *sources = (operand.strip() for operand in operands.split(","))
        values = [int(s, 0) if s[0].isdigit() else registers[s] for s in sources]
        registers[target] = _OPERATIONS[operation](values) & _WORD
    return registers


def _prmt(values: Sequence[int]) -> int:
    """Selects four of the eight bytes of b, a by nibbles; no sign is replicated here."""
    a, b, selector = values
    pool = a | b << 32
    picked = [pool >> 8 * (selector >> 4 * byte & 7) & 255 for byte in range(4)]
    return sum(value << 8 * byte for byte, value in enumerate(picked))


def _lop3(values: Sequence[int]) -> int:
    """Any function of three bits: bit abc of the table."""
    *operands, table = values
    result = 0
    for bit in range(32):
        a, b, c = (operand >> bit & 1 for operand in operands)
        result |= (table >> (4 * a + 2 * b + c) & 1) << bit
    return result


def _fma_bf16x2(values: Sequence[int]) -> int:
    """a * b + c in both halves, rounded once."""
    halves = torch.tensor([[value & 0xFFFF, value >> 16] for value in values], dtype=torch.int32)
    a, b, c = halves.to(torch.int16).view(torch.bfloat16).double()
    low, high = (a * b + c).to(torch.bfloat16).view(torch.int16)
    return (int(low) & 0xFFFF) | (int(high) & 0xFFFF) << 16


_OPERATIONS: Mapping[str, Callable[[Sequence[int]], int]] = {
    "mov.b32": lambda v: v[0],
    "and.b32": lambda v: v[0] & v[1],
    "shl.b32": lambda v: v[0] << v[1],
    "shr.u32": lambda v: v[0] >> v[1],
    "prmt.b32": _prmt,
    "lop3.b32": _lop3,
    "fma.rn.bf16x2": _fma_bf16x2,
}
