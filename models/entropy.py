"""From stored `rans` chunks to what a GPU decodes: the one place that knows both forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor.bundle.codecs.entropy.rans_chunk import RansChunk
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCorruptError
from tersor.kernels.entropy import EncodedChunk, RansBatch, RansTables, rans_decode
from tersor.kernels.errors import CorruptChunkError, LayoutError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredChunk:
    """A chunk of the codec `rans` as a bundle holds it."""

    stored: ByteArray
    raw_bytes: int  # that it decodes to
    table: ByteArray | None = None  # its stream's, if that has one


def rans_batch(chunks: Sequence[StoredChunk], device: torch.device) -> RansBatch:
    """Parses chunks, and copies them to `device` for one launch.

    Args:
        chunks: at least one; the symbols of all have one width.
        device: of CUDA.

    Raises:
        BundleCorruptError: a chunk is malformed, or the chunks do not go together.
    """
    tables: dict[bytes, RansTables] = {}
    try:
        return RansBatch.pack([_encoded(chunk, tables) for chunk in chunks], device)
    except LayoutError as error:
        raise BundleCorruptError(f"rANS chunks cannot be decoded: {error}") from error


def decode_rans(chunks: Sequence[StoredChunk], device: torch.device) -> list[Tensor]:
    """Decodes chunks on a GPU, all of them at once, and waits for it.

    Returns:
        The symbols of each chunk on `device`, uint8 or uint16: views of one tensor.

    Raises:
        BundleCorruptError: a chunk is malformed, or its words do not decode.
    """
    batch = rans_batch(chunks, device)
    symbols, errors = rans_decode(batch)
    try:
        batch.check(errors)
    except CorruptChunkError as error:
        raise BundleCorruptError(f"rANS chunks are damaged: {error}") from error
    return list(symbols.split(batch.chunk_symbols))


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
