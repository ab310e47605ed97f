"""The operator that decodes `rans` chunks, visible to torch.compile and CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.kernels.entropy.batch import RansBatch, TableChoice

LIBRARY = torch.library.Library("tersor", "FRAGMENT")
LIBRARY.define(
    "rans_decode(Tensor words, Tensor states, Tensor blocks, Tensor slots, Tensor rows, "
    "Tensor columns, Tensor patch_positions, Tensor patch_values, int symbols, int choice) "
    "-> (Tensor, Tensor)"
)


def _launch(
    words: Tensor,
    states: Tensor,
    blocks: Tensor,
    slots: Tensor,
    rows: Tensor,
    columns: Tensor,
    patch_positions: Tensor,
    patch_values: Tensor,
    symbols: int,
    choice: int,
) -> tuple[Tensor, Tensor]:
    from tersor.kernels.entropy import triton  # imports triton, which a CPU need not have

    batch = RansBatch(
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
    decoded: tuple[Tensor, Tensor] = triton.decode(batch)
    return decoded


# On a CPU the launcher refuses, unless Triton's interpreter runs: bundles have their own decoder.
for _device in ("CUDA", "CPU"):
    torch.library.impl(LIBRARY, "rans_decode", _device)(_launch)


def _fake(
    words: Tensor,
    states: Tensor,
    blocks: Tensor,
    slots: Tensor,
    rows: Tensor,
    columns: Tensor,
    patch_positions: Tensor,
    patch_values: Tensor,
    symbols: int,
    choice: int,
) -> tuple[Tensor, Tensor]:
    del words, blocks, slots, rows, columns, patch_positions, choice  # shapes do not depend on them
    errors = states.new_empty(states.shape[0], dtype=torch.int32)
    return patch_values.new_empty(symbols), errors


torch.library.register_fake("tersor::rans_decode", _fake, lib=LIBRARY)


def rans_decode(batch: RansBatch) -> tuple[Tensor, Tensor]:
    """Decodes a batch on its GPU without waiting for it.

    Returns:
        The symbols of all chunks one after the other, uint8 or uint16 [batch.symbols], and what
        `batch.check` looks at, int32 [blocks]; symbols of a bad block are arbitrary.

    Raises:
        LayoutError: a tensor has another shape, dtype or device than RansBatch says.
    """
    decoded: tuple[Tensor, Tensor] = torch.ops.tersor.rans_decode(
        batch.words,
        batch.states,
        batch.blocks,
        batch.slots,
        batch.rows,
        batch.columns,
        batch.patch_positions,
        batch.patch_values,
        batch.symbols,
        batch.choice,
    )
    return decoded
