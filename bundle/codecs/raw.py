"""The identity codec."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.bundle.codecs.base import Codec, Encoder, StreamShape
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCorruptError


class RawCodec(Codec):
    """Stores the bytes as they are."""

    name = "raw"
    max_ratio = 1
    decode_mb_per_second = 22000

    @property
    def encoders(self) -> Sequence[Encoder]:
        return (_copy,)

    def decode(
        self, stored: ByteArray, raw_bytes: int, table: ByteArray | None = None
    ) -> ByteArray:
        del table
        if stored.size != raw_bytes:
            raise BundleCorruptError(
                f"a raw chunk stores {stored.size} bytes, expected {raw_bytes}"
            )
        return stored


def _copy(data: ByteArray, shape: StreamShape, table: ByteArray | None) -> bytes:
    del shape, table
    return data.tobytes()
