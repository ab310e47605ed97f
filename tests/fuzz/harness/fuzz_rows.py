"""Target: every way to read the same rows gives the same bytes, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
from fuzz_files import mutate_chunks
from fuzz_forge import Forge
from fuzz_open import ACCEPTED, Finding, check_array, readable_planes, refusal
from fuzz_seeds import Seeds
from fuzz_target import Target
from memory_source import MemorySource, RemoteMemorySource

from tersor.bundle.dtypes import AnyArray, Geometry
from tersor.bundle.errors import BundleError
from tersor.bundle.manifest import Plane
from tersor.bundle.reader import BundleReader


class Rows(Target):
    """Whole planes, ranges of rows, stored bytes decoded later, and mapped files, compared."""

    name = "rows, sources"
    weight = 6

    def __init__(self, seeds: Seeds, folder: Path) -> None:
        self._seeds = seeds
        self._forge = Forge()
        self._path = folder / "x.tersor"

    def run(self, rng: Random) -> str:
        seed = self._seeds.pick(rng)
        data = seed.data
        if rng.random() < 0.6:
            value = seed.value
            body = self._forge.lay_out(value, mutate_chunks(rng, seed, value))
            data = self._forge.bundle(body, json.dumps(value).encode())
        self.input = data
        try:
            reader = BundleReader.open(MemorySource(data), threads=1)
        except BundleError as error:
            return refusal(error)
        outcome = ACCEPTED
        with reader, self._other(rng, data, reader) as other:
            for plane, rows in readable_planes(reader):
                if rows is None:
                    whole = _array(reader, plane, None)
                    if isinstance(whole, str):
                        outcome = whole
                    _compare(rng, other, plane, whole)
        return outcome

    def _other(self, rng: Random, data: bytes, reader: BundleReader) -> BundleReader:
        """Another way to the same bytes; what opens in one way must open in all."""
        kind = rng.randrange(4)
        if kind == 0:
            self._path.write_bytes(data)
            return BundleReader.open(self._path, access="map", threads=1)
        if kind == 1:
            return BundleReader.open(RemoteMemorySource(data), threads=1)
        return reader


def _array(reader: BundleReader, plane: Plane, rows: tuple[int, int] | None) -> AnyArray | str:
    """The rows, or the name of the error."""
    try:
        return reader.read_plane(plane, rows=rows)
    except BundleError as error:
        return refusal(error)


def _compare(rng: Random, reader: BundleReader, plane: Plane, whole: AnyArray | str) -> None:
    count = Geometry.of_plane(plane).rows
    bounds = (rng.randint(0, count), rng.randint(0, count))
    first, last = min(bounds), max(bounds)
    some = _array(reader, plane, (first, last))
    try:
        fetched: AnyArray | str = reader.fetch_plane(plane, rows=(first, last)).decode()
    except BundleError as error:
        fetched = refusal(error)
    if isinstance(some, str) or isinstance(fetched, str):
        if not isinstance(whole, str):
            raise Finding(f"a plane reads, but not its rows {first} to {last}")
        if not (isinstance(some, str) and isinstance(fetched, str)):
            raise Finding(f"rows {first} to {last} can be read, or fetched, but not both")
        return
    if plane.shape:
        check_array(plane, some, last - first)
    expected = None if isinstance(whole, str) else np.atleast_1d(whole)[first:last]
    for got in (some, fetched):
        if expected is not None and got.tobytes() != expected.tobytes():
            raise Finding(f"rows {first} to {last} differ from those of the whole plane")
    if some.tobytes() != fetched.tobytes():
        raise Finding(f"rows {first} to {last} differ when they are fetched first")
