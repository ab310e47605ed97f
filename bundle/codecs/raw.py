"""The identity codec."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.bundle.codecs.base import Codec, Encoder
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCorruptError


class RawCodec(Codec):
    """Stores the bytes as they are."""

    name = "raw"
    max_ratio = 1

    @property
    def encoders(self) -> Sequence[Encoder]:
        return (_copy,)

    def decode(self, stored: ByteArray, raw_bytes: int) -> ByteArray:
        if stored.size != raw_bytes:
            raise BundleCorruptError(
                f"a raw chunk stores {stored.size} bytes, expected {raw_bytes}"
            )
        return stored


def _copy(data: ByteArray) -> bytes:
    return data.tobytes()
