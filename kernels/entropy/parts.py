"""Bytes that are coded in parts: `rans` chunks decoded on the device, the others copied there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate

import torch
from torch import Tensor

from tersor.kernels.entropy.batch import RansBatch
from tersor.kernels.entropy.chunk import EncodedChunk
from tersor.kernels.entropy.ops import rans_decode_into
from tersor.kernels.errors import LayoutError
from tersor.kernels.staging import Staging

Part = EncodedChunk | Tensor  # a chunk of `rans`, or uint8 [bytes] on the host
Measure = Callable[[str], AbstractContextManager[object]]

# Words of one launch: what decoding takes of the device beside its result. 64 MiB are more than a
# thousand blocks, a quarter of what an H200 decodes at once, and take the link 1.3 ms.
BATCH_BYTES = 64 << 20


def decode_parts(
    parts: Sequence[Part], staging: Staging, measure: Measure, *, batch_bytes: int = BATCH_BYTES
) -> tuple[Tensor, Tensor]:
    """Brings parts to the device of `staging`, one after the other in one tensor.

    Chunks travel compressed. While one batch is decoded the host prepares the next, and parts that
    are not coded are on the link.

    Args:
        parts: at least one.
        staging: what copies.
        measure: gets the phase "transfer" while bytes are packed, copied and waited for, and the
            phase "decode" for the rest.
        batch_bytes: of words in one launch, at most; a chunk that has more gets one of its own.

    Returns:
        uint8 [bytes of all parts], and whether a block does not decode (bool, a scalar); then the
        bytes are arbitrary. Both are on the device and may not be there yet.

    Raises:
        LayoutError: chunks have symbols of different widths, or of two bytes at odd places.
    """
    places = list(accumulate(map(_num_bytes, parts), initial=0))
    out = torch.empty(places.pop(), dtype=torch.uint8, device=staging.device)
    coded = [
        (part, at)
        for part, at in zip(parts, places, strict=True)
        if isinstance(part, EncodedChunk) and part.symbols
    ]
    dtypes = {chunk.tables.values.dtype for chunk, _ in coded}
    width = max((dtype.itemsize for dtype in dtypes), default=1)
    if len(dtypes) > 1 or any(at % width for _, at in coded) or out.numel() % width:
        raise LayoutError(
            f"chunks of symbols of {sorted(map(str, dtypes))} are not decoded into one tensor of "
            f"{out.numel()} bytes"
        )
    bad = torch.zeros((), dtype=torch.bool, device=staging.device)
    for batch in _batches(coded, batch_bytes):
        chunks = [chunk for chunk, _ in batch]
        with measure("transfer"):
            packed = RansBatch.pack(
                chunks, staging.device, places=[at // width for _, at in batch], staging=staging
            )
        with measure("decode"):
            errors = rans_decode_into(packed, out.view(packed.patch_values.dtype))
            bad |= errors.any()
    with measure("transfer"):
        for part, at in zip(parts, places, strict=True):
            if isinstance(part, Tensor):
                staging.copy([part], out[at : at + part.numel()])
        staging.wait()
    return out, bad


def _num_bytes(part: Part) -> int:
    if isinstance(part, Tensor):
        return part.numel()
    return part.symbols * part.tables.values.itemsize


def _batches(
    coded: Sequence[tuple[EncodedChunk, int]], batch_bytes: int
) -> Iterator[list[tuple[EncodedChunk, int]]]:
    """Consecutive chunks with their places, in batches of at most so many bytes of words."""
    batch: list[tuple[EncodedChunk, int]] = []
    held = 0
    for chunk, at in coded:
        size = chunk.words.nbytes
        if batch and held + size > batch_bytes:
            yield batch
            batch, held = [], 0
        batch.append((chunk, at))
        held += size
    if batch:
        yield batch
