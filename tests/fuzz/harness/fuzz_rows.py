"""Target: every way to read the same rows gives the same bytes, or is refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random

import numpy as np
from fuzz_files import mutate_chunks
from fuzz_forge import Forge
from fuzz_open import ACCEPTED, Finding, check_array, readable_planes, refusal
from fuzz_seeds import Seeds
from fuzz_target import Target
from memory_source import MemorySource

from tersor.bundle.dtypes import AnyArray, Geometry
from tersor.bundle.errors import BundleError
from tersor.bundle.manifest import Plane
from tersor.bundle.reader import BundleReader


class Rows(Target):
    """Whole planes, ranges of rows, stored bytes decoded later, and mapped files, compared."""

    name = "rows, mapped"
    weight = 6

    def __init__(self, seeds: Seeds) -> None:
        self._seeds = seeds
        self._forge = Forge()
        self._folder = tempfile.TemporaryDirectory(prefix="tersor-fuzz-")

    def run(self, rng: Random) -> str:
        seed = self._seeds.pick(rng)
        data = seed.data
        if rng.random() < 0.6:
            value = seed.value
            body = self._forge.lay_out(value, mutate_chunks(rng, seed, value))
            data = self._forge.bundle(body, json.dumps(value).encode())
        self.input = data
        if rng.random() < 0.25:
            path = Path(self._folder.name) / "x.tersor"
            path.write_bytes(data)
            return self._read(rng, data, path)
        return self._read(rng, data, None)

    def _read(self, rng: Random, data: bytes, path: Path | None) -> str:
        try:
            reader = BundleReader.open(MemorySource(data), threads=1)
        except BundleError as error:
            return refusal(error)
        outcome = ACCEPTED
        with reader:
            other = reader if path is None else BundleReader.open(path, access="map", threads=1)
            with other:
                for plane, rows in readable_planes(reader):
                    if rows is None:
                        whole = _array(reader, plane, None)
                        if isinstance(whole, str):
                            outcome = whole
                        _compare(rng, other, plane, whole)
        return outcome


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
