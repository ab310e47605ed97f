"""The contract of a codec: lossless bytes to bytes, bounded while decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from tersor.bundle.dtypes import ByteArray

Encoder = Callable[[ByteArray], bytes]


class Codec(ABC):
    """Turns one chunk of a stream into stored bytes and back.

    Instances may keep per-thread contexts and are safe from many threads; whoever needs codecs
    makes them with `default_codecs()` and owns them.
    """

    name: ClassVar[str]
    # No stored byte of this codec can stand for more raw bytes: a chunk that declares more is
    # refused before its output is allocated.
    max_ratio: ClassVar[int]

    @property
    @abstractmethod
    def encoders(self) -> Sequence[Encoder]:
        """Ways to encode, all decoded by `decode_into`; the writer measures and keeps the smallest.

        Each is deterministic: the same bytes give the same stored bytes.
        """

    @abstractmethod
    def decode(self, stored: ByteArray, raw_bytes: int) -> ByteArray:
        """Decodes a whole chunk into exactly `raw_bytes` bytes; may return a view of `stored`.

        Allocates no more than `raw_bytes`, whatever the stored bytes claim.

        Raises:
            BundleCorruptError: the stored bytes do not decode to exactly `raw_bytes`.
        """

    def decode_into(self, stored: ByteArray, out: ByteArray) -> None:
        """Decodes a whole chunk into `out`, which is exactly as long as the chunk is raw.

        Raises:
            BundleCorruptError: as `decode`.
        """
        out[:] = self.decode(stored, out.size)
