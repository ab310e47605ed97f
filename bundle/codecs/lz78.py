"""LZ78 (Ziv and Lempel, 1978): each phrase is one found before and a byte more."""

from __future__ import annotations

from tersor.bundle.codecs.phrases import PhraseCodec


class Lz78Codec(PhraseCodec):
    """Pairs of a phrase's number and the byte that extends it, bit-packed."""

    name = "lz78"
    decode_mb_per_second = 1500
    # Pair i, from 0, stands for a phrase of at most m + 1 bytes in bits(m) + 8 bits, where
    # m = min(i, 65535) is the largest number it may hold. Of b = bits(m) bits m is at most 2^b - 1,
    # so a stored byte stands for at most 8 * 2^b / (b + 8) raw ones. That grows with b up to 16:
    # 8 * 65536 / 24 = 21845.3; a whole chunk, the sum of its pairs, has no larger ratio.
    max_ratio = 21846
    literal_bits = 8
