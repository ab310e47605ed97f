"""The contract of a source: where the bytes of a bundle come from."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np

from tersor.bundle.decoding import Cancelled
from tersor.bundle.dtypes import ByteArray
from tersor.bundle.errors import BundleReadError


class ByteSource(ABC):
    """The bytes of one bundle, read by position. Safe from many threads.

    A source that was made is open. Whoever reads stays inside `using()`; `close` waits until every
    such block has been left, so that nothing is closed under a reader. Messages of errors do not
    begin with `name`, except those raised while a source is made.
    """

    name: str  # what messages call it; never holds a secret
    size: int  # bytes; fixed when the source was made

    # Whether every read waits for a remote end. Then a few large reads are faster than many small
    # ones, and an error is about all of it; a local block is best read alone and used while it is
    # in the cache, and a disk loses parts.
    is_remote: ClassVar[bool] = False
    has_views: ClassVar[bool] = False  # whether `view` has the bytes

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._users = 0
        self._closed = False
        self._idle = threading.Condition()

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keeps the source open inside the block. Raises BundleReadError once closed."""
        with self._idle:
            if self._closed:
                raise BundleReadError("the reader is closed; open the bundle again")
            self._users += 1
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    @abstractmethod
    def read_into(self, offset: int, out: ByteArray, *, cancelled: Cancelled | None = None) -> None:
        """Fills `out` with the bytes at `offset`; only inside `using()`.

        After an error or a cancellation the content of `out` is undefined.

        Args:
            offset: where the bytes begin.
            out: one-dimensional, contiguous and writable.
            cancelled: polled while a remote end is waited for; a local read does not wait.

        Raises:
            BundleTruncatedError: the source ends before `out` is full.
            BundleReadError: it cannot be read, or is not what it was when it was opened.
            BundleCancelledError: `cancelled()` became true.
        """

    def view(self, offset: int, size: int) -> ByteArray | None:
        """The bytes without a copy, where the source has them in memory; only inside `using()`.

        Returns:
            A read-only array that stays valid for as long as it is referred to, also after `close`;
            None where the source has to read.

        Raises:
            BundleTruncatedError: the source ends before `offset + size`.
        """
        del offset, size
        return None

    def load(self, offset: int, size: int, *, cancelled: Cancelled | None = None) -> ByteArray:
        """The bytes at `offset`: a view where there is one, else read into a new array.

        Only inside `using()`. The array may be read-only. Raises as `read_into`.
        """
        data = self.view(offset, size)
        if data is None:
            data = np.empty(size, np.uint8)
            self.read_into(offset, data, cancelled=cancelled)
        return data

    def close(self) -> None:
        """Closes the source after its last user has left. May be called twice."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            while self._users:
                self._idle.wait()
        self._release()

    @abstractmethod
    def _release(self) -> None:
        """Gives back what the source holds: called once, when nobody uses it any more."""
