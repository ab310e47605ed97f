"""LZW (Welch, 1984): each phrase found is extended by the first byte of the next."""

from __future__ import annotations

from tersor.bundle.codecs.phrases import PhraseCodec


class LzwCodec(PhraseCodec):
    """Numbers of phrases, bit-packed; the first 256 are the bytes."""

    name = "lzw"
    decode_mb_per_second = 1300
    # Phrase c >= 256 was the (c - 256)th to be found and has at most c - 254 bytes: each is at most
    # one longer than the longest before it. A code of b bits is at most 2^b - 1, so a stored byte
    # stands for at most 8 * (2^b - 255) / b raw ones. That grows with b up to 16:
    # 8 * 65281 / 16 = 32640.5; a whole chunk, the sum of its codes, has no larger ratio.
    max_ratio = 32641
    literal_bits = 0
