"""Reads that follow each other, out of few large ones."""

from __future__ import annotations

import threading
from typing import Final

import numpy as np

from tersor.bundle.decoding import Cancelled
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleTruncatedError
from tersor.bundle.sources.base import ByteSource

READ_AHEAD_BYTES: Final = 8 << 20


class ReadAhead(ByteSource):
    """A remote source, read from one end to the other by reads of `READ_AHEAD_BYTES`.

    A read of what lies behind, such as a shared chunk, is one of its own, unless the next read goes
    on from there. Closes the other source with itself. One reader at a time.
    """

    is_remote = True

    def __init__(self, source: ByteSource) -> None:
        super().__init__(source.name, source.size)
        self._source = source
        self._start = 0  # of `_buffer` in the source
        self._buffer: ByteArray = np.empty(0, np.uint8)
        self._last = 0  # where the last read ended
        self._lock = threading.Lock()

    def read_into(self, offset: int, out: ByteArray, *, cancelled: Cancelled | None = None) -> None:
        if offset + out.size > self.size:
            raise BundleTruncatedError(
                f"the source has {self.size} bytes, expected data up to {offset + out.size}"
            )
        with self._lock, self._source.using():
            at = offset
            while at < offset + out.size:
                rest = out[at - offset :]
                here = at - self._start
                piece = self._buffer[here : here + rest.size] if here >= 0 else self._buffer[:0]
                if piece.size:
                    rest[: piece.size] = piece
                    at += piece.size
                elif rest.size >= READ_AHEAD_BYTES or (here < 0 and at != self._last):
                    self._source.read_into(at, rest, cancelled=cancelled)
                    break
                else:
                    self._refill(at, cancelled)
            self._last = offset + out.size

    def _refill(self, offset: int, cancelled: Cancelled | None) -> None:
        self._buffer = np.empty(0, np.uint8)  # never two buffers at once
        data = np.empty(min(READ_AHEAD_BYTES, self.size - offset), np.uint8)
        self._source.read_into(offset, data, cancelled=cancelled)
        self._start, self._buffer = offset, data

    def _release(self) -> None:
        self._source.close()
