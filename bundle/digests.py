"""The two hashes of the format: xxh3-64 against damage, BLAKE3 for identity."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash
from blake3 import blake3

from tersor.bundle.dtypes import AnyArray


def checksum(stored: bytes | memoryview) -> int:
    """xxh3-64 of stored bytes, as an unsigned integer."""
    return xxhash.xxh3_64_intdigest(stored)


def digest_bytes(data: bytes | memoryview) -> str:
    """BLAKE3 of a byte string, as 64 hexadecimal digits."""
    return blake3(data).hexdigest()


def digest_array(array: AnyArray) -> str:
    """BLAKE3 of a contiguous array's memory, as 64 hexadecimal digits."""
    return digest_bytes(array.reshape(-1).view(np.uint8).data)


def content_digest(parts: Iterable[str]) -> str:
    """BLAKE3 over the concatenated 32-byte digests of all planes and assets, in order."""
    hasher = blake3()
    for part in parts:
        hasher.update(bytes.fromhex(part))
    return hasher.hexdigest()
