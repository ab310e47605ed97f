"""What LZ78 and LZW share: a dictionary of phrases that grows by one with each code.

LZ77 (zstd, lz4) refers to any place within a window; these refer to a phrase that was found before,
by its number. The encoder needs no search for matches and the decoder no entropy decoding. On
weights, which repeat no strings, the phrases are those that chance repeats: trained exponents, of
which rANS stores 32.7 % and zstd 32.9 %, take 35.9 % in LZW and 45.2 % in LZ78. No plane is
smallest in either, and encoding runs at about 110 MB/s, so `auto` leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tersor.bundle.codecs.base import Codec, Encoder, StreamShape
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleCorruptError


class PhraseCodec(Codec):
    """One stream of codes a chunk, without header. Keeps nothing between calls."""

    # 8 if each code is followed by the byte that extends its phrase, else 0.
    literal_bits: ClassVar[int]
    in_auto = False

    @property
    def encoders(self) -> Sequence[Encoder]:
        return (self._encode,)

    def decode(
        self, stored: ByteArray, raw_bytes: int, table: ByteArray | None = None
    ) -> ByteArray:
        out = np.empty(raw_bytes, np.uint8)
        self.decode_into(stored, out, table)
        return out

    def decode_into(
        self, stored: ByteArray, out: ByteArray, table: ByteArray | None = None
    ) -> None:
        del table
        from tersor.bundle.codecs import phrases_compiled as loops

        ending = loops.decode(stored, out, self.literal_bits)
        if ending != loops.DECODED:
            reason = {
                loops.ENDS_EARLY: "its codes end before its last byte",
                loops.UNKNOWN_CODE: "a code stands for no phrase found before it",
                loops.TOO_LONG: "a phrase reaches beyond its last byte",
                loops.LEFT_OVER: "something follows its last code",
            }[ending]
            raise BundleCorruptError(
                f"an {self.name} chunk of {stored.size} bytes does not decode to {out.size} "
                f"bytes: {reason}"
            )

    def _encode(self, data: ByteArray, shape: StreamShape, table: ByteArray | None) -> bytes:
        del shape, table
        from tersor.bundle.codecs import phrases_compiled as loops

        stored = np.empty(loops.stored_capacity(data.size, self.literal_bits), np.uint8)
        return stored[: loops.encode(data, stored, self.literal_bits)].tobytes()
