"""From stored `rans` chunks to what a GPU decodes: the one place that knows both forms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tersor.bundle.codecs.entropy.rans_chunk import RansChunk
from tersor.bundle.encoded_plane import StoredChunk
from tersor.bundle.errors import BundleCorruptError
from tersor.kernels.entropy import EncodedChunk, RansTables
from tersor.kernels.errors import LayoutError


def encoded_chunks(chunks: Sequence[StoredChunk]) -> list[EncodedChunk]:
    """Parses chunks of the codec `rans`; equal models become one object.

    Nothing is decoded, and words stay where they are if they may be written to.

    Raises:
        BundleCorruptError: a chunk is malformed.
    """
    tables: dict[bytes, RansTables] = {}
    try:
        return [_encoded(chunk, tables) for chunk in chunks]
    except LayoutError as error:
        raise BundleCorruptError(f"a rANS chunk cannot be decoded: {error}") from error


def _encoded(stored: StoredChunk, tables: dict[bytes, RansTables]) -> EncodedChunk:
    """The chunk as tensors; `tables` holds those of earlier chunks by their packed model."""
    chunk = RansChunk(stored.stored, stored.raw_bytes, stored.table)
    model = chunk.model
    packed = chunk.packed_model.tobytes()
    if packed not in tables:
        codes, values = model.slots()
        tables[packed] = RansTables(
            precision=model.precision,
            codes=torch.from_numpy(codes),
            values=torch.from_numpy(values),
        )
    positions, patched = chunk.patches
    return EncodedChunk(
        symbols=chunk.symbols,
        tables=tables[packed],
        # Copied only where a bundle's bytes lie at an odd address, or may not be written to.
        words=torch.from_numpy(np.require(chunk.words, requirements=["A", "W"])),
        word_ends=torch.from_numpy(chunk.ends.astype(np.int64)),
        states=torch.from_numpy(chunk.states),
        row_symbols=chunk.row_symbols,
        row_class=torch.from_numpy(chunk.row_class),
        column_classes=model.column_classes,
        column_class=torch.from_numpy(model.columns),
        patch_positions=torch.from_numpy(positions.astype(np.int64)),
        patch_values=torch.from_numpy(patched),
    )
