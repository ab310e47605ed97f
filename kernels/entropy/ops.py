"""The operator that decodes `rans` chunks, visible to torch.compile and CUDA graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.kernels.entropy.batch import RansBatch, TableChoice

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
_BATCH = (
    "Tensor words, Tensor states, Tensor blocks, Tensor slots, Tensor rows, Tensor columns, "
    "Tensor patch_positions, Tensor patch_values, int choice"
)
LIBRARY.define(f"rans_decode({_BATCH}, int symbols) -> (Tensor, Tensor)")
LIBRARY.define(f"rans_decode_into({_BATCH}, Tensor(a!) out) -> Tensor")


def _batch(
    words: Tensor,
    states: Tensor,
    blocks: Tensor,
    slots: Tensor,
    rows: Tensor,
    columns: Tensor,
    patch_positions: Tensor,
    patch_values: Tensor,
    choice: int,
    symbols: int = 0,
) -> RansBatch:
    return RansBatch(
        chunk_symbols=(symbols,),
        words=words,
        states=states,
        blocks=blocks,
        slots=slots,
        rows=rows,
        columns=columns,
        patch_positions=patch_positions,
        patch_values=patch_values,
        choice=TableChoice(choice),
    )


def _operands(batch: RansBatch) -> tuple[Tensor | int, ...]:
    """The inverse of `_batch`, without the symbols."""
    return (
        batch.words,
        batch.states,
        batch.blocks,
        batch.slots,
        batch.rows,
        batch.columns,
        batch.patch_positions,
        batch.patch_values,
        batch.choice,
    )


def _decode(*operands: Any) -> tuple[Tensor, Tensor]:
    from tersor.kernels.entropy import triton  # imports triton, which a CPU need not have

    decoded: tuple[Tensor, Tensor] = triton.decode(_batch(*operands))
    return decoded


def _decode_into(*operands: Any) -> Tensor:
    from tersor.kernels.entropy import triton

    errors: Tensor = triton.decode_into(_batch(*operands[:-1]), operands[-1])
    return errors


# On a CPU the launcher refuses, unless Triton's interpreter runs: bundles have their own decoder.
for _device in ("CUDA", "CPU"):
    torch.library.impl(LIBRARY, "rans_decode", _device)(_decode)
    torch.library.impl(LIBRARY, "rans_decode_into", _device)(_decode_into)


def _fake_errors(batch: RansBatch) -> Tensor:
    return batch.states.new_empty(batch.states.shape[0], dtype=torch.int32)


def _fake(*operands: Any) -> tuple[Tensor, Tensor]:
    batch = _batch(*operands)
    return batch.patch_values.new_empty(batch.symbols), _fake_errors(batch)


def _fake_into(*operands: Any) -> Tensor:
    return _fake_errors(_batch(*operands[:-1]))


torch.library.register_fake("tersor::rans_decode", _fake, lib=LIBRARY)
torch.library.register_fake("tersor::rans_decode_into", _fake_into, lib=LIBRARY)


def rans_decode(batch: RansBatch) -> tuple[Tensor, Tensor]:
    """Decodes a batch on its GPU without waiting for it.

    Returns:
        The symbols of all chunks, uint8 or uint16 [batch.symbols], and what `batch.check` looks at,
        int32 [blocks]; symbols of a bad block are arbitrary.

    Raises:
        LayoutError: a tensor has another shape, dtype or device than RansBatch says.
    """
    decoded: tuple[Tensor, Tensor] = torch.ops.tersor.rans_decode(*_operands(batch), batch.symbols)
    return decoded


def rans_decode_into(batch: RansBatch, out: Tensor) -> Tensor:
    """Decodes a batch into `out` [n], each chunk to where it was packed for, without waiting.

    What lies between the chunks stays. A chunk that would reach beyond `out` is an error of its
    blocks. Returns the second of what `rans_decode` returns, and raises as it does.
    """
    errors: Tensor = torch.ops.tersor.rans_decode_into(*_operands(batch), out)
    return errors
