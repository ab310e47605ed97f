"""Planes from the byte streams of their filters, on the device where the streams were decoded.

Every function takes the streams of a whole plane one after the other, each as the concatenation of
its chunks, and fits what `docs/format.md` (section 3) says of the filter. It may then be used where
the blocks of a plane meet at whole bytes of each stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.checks import check_tensor
from tersor.kernels.filters import reference
from tersor.kernels.filters.reference import join_bits, join_float8

__all__ = ["join_bits", "join_float8", "join_floats", "join_nibbles"]


def join_floats(streams: Tensor, symbol_bytes: int, *, rows: int = 0) -> Tensor:
    """Joins `float_split`, or `row_exponent` where `rows` is not 0.

    Args:
        streams: uint8 [rows + symbols * symbol_bytes]: `base`, if there are rows, the exponents,
            and the other bytes, most significant first.
        symbol_bytes: 2, 4 or 8.
        rows: that have a base; they divide the symbols.

    Returns:
        Unsigned integers of that width [symbols].

    Raises:
        LayoutError: `streams` has another dtype, or is not contiguous.
    """
    check_tensor("streams", streams, shape=(None,), dtypes=(torch.uint8,))
    if _has_kernels(streams):
        from tersor.kernels.filters import triton  # imports triton, which a CPU need not have

        joined: Tensor = triton.join_floats(streams, symbol_bytes, rows)
        return joined
    return reference.join_floats(streams, symbol_bytes, rows)


def join_nibbles(stream: Tensor, symbols: int) -> tuple[Tensor, Tensor]:
    """Joins `nibbles`: uint8 [ceil(symbols / 2)] to u4 symbols, uint8 [symbols].

    Returns:
        The symbols, and whether the unused half of the last byte is not 0 (bool, a scalar).

    Raises:
        LayoutError: `stream` has another shape or dtype, or is not contiguous.
    """
    check_tensor("stream", stream, shape=((symbols + 1) // 2,), dtypes=(torch.uint8,))
    if _has_kernels(stream):
        from tersor.kernels.filters import triton

        joined: Tensor = triton.join_nibbles(stream, symbols)
    else:
        joined = reference.join_nibbles(stream, symbols)
    return joined, reference.unused_bits(stream[-1:], 4 * (symbols % 2))


def _has_kernels(tensor: Tensor) -> bool:
    if tensor.device.type != "cpu":
        return True
    try:
        import triton
    except ImportError:
        return False
    interpreted: bool = triton.knobs.runtime.interpret
    return interpreted
