"""A bundle in memory: what a test changes and opens again many times a second needs no file."""

from __future__ import annotations

import numpy as np

from tersor.bundle.decoding import Cancelled
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleTruncatedError
from tersor.bundle.sources import ByteSource


class MemorySource(ByteSource):
    """Bytes that are read by copying them, as those of a file are."""

    def __init__(self, data: bytes | bytearray, name: str = "memory") -> None:
        super().__init__(name, len(data))
        self._data = np.frombuffer(data, np.uint8)

    def read_into(self, offset: int, out: ByteArray, *, cancelled: Cancelled | None = None) -> None:
        del cancelled  # nothing is waited for
        part = self._data[offset : offset + out.size]
        if part.size != out.size:
            raise BundleTruncatedError(
                f"there are {self.size} bytes, expected data up to {offset + out.size}"
            )
        out[:] = part

    def _release(self) -> None:
        """Nothing is held but the bytes themselves."""


class RemoteMemorySource(MemorySource):
    """The same, read as what is far away: in few large pieces, each byte once."""

    is_remote = True
