"""The codecs by name.

A new codec is one module with one class, added to `default_codecs`; the manifest names it on each
chunk, so the format itself does not change.
"""

from __future__ import annotations

from collections.abc import Mapping

from tersor.bundle.codecs.base import BYTES, Codec, Draft, Encoder, StreamShape
from tersor.bundle.codecs.entropy.huffman import HuffmanCodec
from tersor.bundle.codecs.entropy.rans import RansCodec
from tersor.bundle.codecs.lz4 import Lz4Codec
from tersor.bundle.codecs.lz78 import Lz78Codec
from tersor.bundle.codecs.lzw import LzwCodec
from tersor.bundle.codecs.raw import RawCodec
from tersor.bundle.codecs.zstd import ZstdCodec

AUTO = "auto"

# Of two equally small encodings the earlier codec is kept.
_CODECS: tuple[type[Codec], ...] = (
    RawCodec,
    Lz4Codec,
    ZstdCodec,
    Lz78Codec,
    LzwCodec,
    HuffmanCodec,
    RansCodec,
)

CODEC_NAMES: tuple[str, ...] = tuple(codec.name for codec in _CODECS)
MAX_RATIOS: Mapping[str, int] = {codec.name: codec.max_ratio for codec in _CODECS}


def default_codecs() -> Mapping[str, Codec]:
    """A new instance of every codec by name; the caller owns their per-thread contexts."""
    return {codec.name: codec() for codec in _CODECS}


__all__ = [
    "AUTO",
    "BYTES",
    "CODEC_NAMES",
    "MAX_RATIOS",
    "Codec",
    "Draft",
    "Encoder",
    "HuffmanCodec",
    "Lz4Codec",
    "Lz78Codec",
    "LzwCodec",
    "RansCodec",
    "RawCodec",
    "StreamShape",
    "ZstdCodec",
    "default_codecs",
]
