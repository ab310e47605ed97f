"""LZ4: fast to decode, no entropy coder; pays only where strings repeat."""

from __future__ import annotations

from collections.abc import Sequence

import lz4.block
import numpy as np

from tersor.bundle.codecs.base import Codec, Encoder, StreamShape
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCorruptError


class Lz4Codec(Codec):
    """One LZ4 block a chunk, without frame or size prefix."""

    name = "lz4"
    max_ratio = 255  # a length byte extends a match by at most 255
    decode_mb_per_second = 1800

    @property
    def encoders(self) -> Sequence[Encoder]:
        return (_compress,)

    def decode(
        self, stored: ByteArray, raw_bytes: int, table: ByteArray | None = None
    ) -> ByteArray:
        del table
        try:
            raw: bytes = lz4.block.decompress(stored, uncompressed_size=raw_bytes)
        except lz4.block.LZ4BlockError as error:
            raise BundleCorruptError(f"an lz4 chunk does not decode: {error}") from error
        if len(raw) != raw_bytes:
            raise BundleCorruptError(
                f"an lz4 chunk decodes to {len(raw)} bytes, expected {raw_bytes}"
            )
        return np.frombuffer(raw, np.uint8)


def _compress(data: ByteArray, shape: StreamShape, table: ByteArray | None) -> bytes:
    del shape, table
    stored: bytes = lz4.block.compress(data, store_size=False)
    return stored
