"""Target: filters, joining streams of any bytes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
from fuzz_open import ACCEPTED, Finding, refusal
from fuzz_seeds import Seeds
from fuzz_target import Target

from tersor.bundle.dtypes import numpy_dtype
from tersor.bundle.errors import BundleCorruptError
from tersor.bundle.filters import FILTERS

_GUARD = 64  # bytes; a multiple of every symbol
_FILL = 0xA5


class Filters(Target):
    """What joins must split into what it was joined from, and join to the same again."""

    name = "filters"
    weight = 5

    def __init__(self, seeds: Seeds, folder: Path) -> None:
        del seeds, folder

    def run(self, rng: Random) -> str:
        entry = rng.choice(tuple(FILTERS.values()))
        dtype = rng.choice(sorted(entry.dtypes))
        kind = numpy_dtype(dtype)
        rows = rng.choice((1, 1, 2, 3, 7, 64))
        row_symbols = rng.choice((1, 2, 3, 5, 8, 63, 64, 65))
        if rng.random() < 0.01:
            rows, row_symbols = 3, (1 << 16) - 1  # more than a tile
        sizes = entry.stream_bytes(dtype, rows, row_symbols)
        # Streams of few bits pass more often what is checked of them.
        mask = np.uint8(rng.choice((255, 255, 127, 15, 7, 1, 0)))
        streams = [np.frombuffer(rng.randbytes(size), np.uint8) & mask for size in sizes]
        self.input = b"".join(stream.tobytes() for stream in streams)
        size = rows * row_symbols * kind.itemsize
        memory = np.full(size + 2 * _GUARD, _FILL, np.uint8)
        out = memory[_GUARD : _GUARD + size].view(kind).reshape(rows, row_symbols)
        error: BundleCorruptError | None = None
        try:
            entry.join(dtype, streams, out)
        except BundleCorruptError as caught:
            error = caught
        if (memory[:_GUARD] != _FILL).any() or (memory[_GUARD + size :] != _FILL).any():
            raise Finding(f"{entry.name} wrote outside of its output")
        if error is not None:
            return refusal(error)
        split = entry.split(dtype, out)
        if tuple(stream.size for stream in split) != sizes:
            raise Finding(f"{entry.name} of {dtype} splits into streams of other sizes")
        # A row's base may be any byte: only what it is joined to is one.
        if entry.name != "row_exponent" and any(
            not np.array_equal(a, b) for a, b in zip(split, streams, strict=True)
        ):
            raise Finding(f"{entry.name} joins {dtype} from streams that it does not split into")
        again = np.empty_like(out)
        entry.join(dtype, split, again)
        if again.tobytes() != out.tobytes():
            raise Finding(f"{entry.name} of {dtype} does not join what it splits")
        return ACCEPTED
