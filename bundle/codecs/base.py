"""The contract of a codec: lossless bytes to bytes, bounded while decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tersor.bundle.dtypes import ByteArray


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamShape:
    """What an encoder may know of the bytes: they are rows of symbols. Never needed to decode."""

    symbol_bytes: int = 1
    row_symbols: int = 0  # 0 where rows mean nothing
    # Whether a code may tell columns apart: smaller, and half as fast to decode.
    column_classes: bool = False


BYTES = StreamShape()

# A table is what all chunks of a stream share: bytes that `Codec.learn` made, or None.
Encoder = Callable[[ByteArray, StreamShape, ByteArray | None], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An encoding whose size is known before it is made."""

    stored_bytes: float
    finish: Callable[[], bytes]


class Codec(ABC):
    """Turns one chunk of a stream into stored bytes and back.

    Instances may keep per-thread contexts and are safe from many threads; whoever needs codecs
    makes them with `default_codecs()` and owns them.
    """

    name: ClassVar[str]
    # No stored byte of this codec can stand for more raw bytes: a chunk that declares more is
    # refused before its output is allocated.
    max_ratio: ClassVar[int]
    # Rated, not timed while writing, so that the choice of a codec is deterministic: decoded MB/s
    # on a trained exponent plane in chunks of 512 KiB, one core of a 3 GHz Sapphire Rapids Xeon,
    # rounded down (`benchmarks/entropy_codecs.py`).
    decode_mb_per_second: ClassVar[int]
    # Whether "auto" tries it: not where it is never the smallest and takes long to say so.
    in_auto: ClassVar[bool] = True
    # Whether `draft` tells the size of an encoding before the work.
    drafts: ClassVar[bool] = False

    @property
    @abstractmethod
    def encoders(self) -> Sequence[Encoder]:
        """Ways to encode, all decoded by `decode`; the writer measures and keeps the smallest.

        Each is deterministic: the same bytes give the same stored bytes.
        """

    def learn(self, samples: Sequence[ByteArray], shape: StreamShape) -> ByteArray | None:
        """A table for all chunks of a stream, made from some of them; None if none can pay."""
        del samples, shape
        return None

    def draft(self, data: ByteArray, shape: StreamShape, table: ByteArray | None) -> Draft | None:
        """The encoding of a chunk, before the work; None where only encoding tells its size."""
        del data, shape, table
        return None

    @abstractmethod
    def decode(
        self, stored: ByteArray, raw_bytes: int, table: ByteArray | None = None
    ) -> ByteArray:
        """Decodes a whole chunk into exactly `raw_bytes` bytes; may return a view of `stored`.

        Allocates no more than `raw_bytes` and what the codec's own caps allow, whatever the stored
        bytes claim.

        Raises:
            BundleCorruptError: the stored bytes do not decode to exactly `raw_bytes`.
        """

    def decode_into(
        self, stored: ByteArray, out: ByteArray, table: ByteArray | None = None
    ) -> None:
        """Decodes a whole chunk into `out`, which is exactly as long as the chunk is raw.

        Raises:
            BundleCorruptError: as `decode`.
        """
        out[:] = self.decode(stored, out.size, table)
