"""Claim: parity of a few percent restores bursts and scattered damage, at the speed of a disk.

Bundles: 200 MB of random bytes, which no codec shrinks, and the example model. Speeds are of the
bundle's bytes, from and to the page cache. Bursts are random in place and length; which blocks and
packets they touch is counted, not repaired.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import record

from tersor.bundle.codecs import ZstdCodec
from tersor.bundle.manifest import SourceSlice
from tersor.bundle.parity import ParityGeometry
from tersor.bundle.parity_survey import geometry_of
from tersor.bundle.program import DecoderProgram
from tersor.bundle.protect import protect
from tersor.bundle.reader import read_manifest
from tersor.bundle.repair import repair
from tersor.bundle.sources import FileSource
from tersor.bundle.verify import verify
from tersor.bundle.writer import BundleWriter, PlaneData
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
TRIALS = 200
Row = dict[str, object]


def random_bundle(path: Path, megabytes: int) -> None:
    """Tensors of 8 MB, two a layer."""
    program = DecoderProgram(
        family="llama", vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2,
        num_heads=4, num_kv_heads=2, head_dim=4, max_context=128, norm_eps=1e-5,
        rope_theta=10000.0, eos_token_ids=(2,),
    )  # fmt: skip
    generator = np.random.default_rng(0)
    with BundleWriter(path, program=program, source={}, recipe={}, codec="raw") as writer:
        for number in range(megabytes // 8):
            array = generator.integers(-128, 128, (2000, 4000), np.int8)
            name = f"layers.{number // 2}.{number % 2}"
            writer.add_tensor(
                name=name,
                group=f"layers.{number // 2}",
                shape=array.shape,
                dtype="i8",
                layout="dense",
                params={},
                planes={"values": PlaneData(dtype="i8", array=array)},
                sources=[SourceSlice(tensor=name, dtype="i8", shape=array.shape, rows=2000)],
            )
        writer.commit()


def geometry(path: Path) -> ParityGeometry:
    """Of a whole bundle's parity."""
    with FileSource.opened(path) as file:
        found = geometry_of(file, read_manifest(file, ZstdCodec()))
    assert found is not None
    return found


def speeds(path: Path, share: float) -> Iterator[tuple[str, float]]:
    """Growth of the file, and megabytes a second of each command."""
    size = path.stat().st_size
    target = path.with_suffix(".protected")

    def speed(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return size / (time.perf_counter() - start) / 1e6

    yield "protect MB/s", speed(lambda: protect(path, share, output=target, force=True))
    whole = target.read_bytes()
    yield "growth %", 100 * (len(whole) / size - 1)
    yield "verify without parity MB/s", speed(lambda: verify(path))
    yield "verify MB/s", speed(lambda: verify(target))
    for damaged in (0.0, 1e-6, 0.01, 0.03):
        if damaged >= share:
            continue
        overwritten = bytearray(whole)
        length = int(damaged * len(whole))
        overwritten[5000 : 5000 + length] = bytes(length)
        target.write_bytes(overwritten)
        yield f"repair of {100 * damaged:g} % MB/s", speed(lambda: repair(target))
        assert target.read_bytes() == whole
    for bursts in (1, 2, 4, 6, 10, 20):
        found = survived(geometry(target), bursts, 0.6 * share)
        yield f"restored of {bursts} bursts over {60 * share:g} %, % of trials", 100 * found


def survived(layout: ParityGeometry, bursts: int, share: float) -> float:
    """Share of random placements of bursts over `share` of the file that parity restores."""
    generator = np.random.default_rng(bursts)
    good = 0
    for _ in range(TRIALS):
        counts = np.zeros(layout.stripes, np.int64)
        touched = set()
        lengths = generator.dirichlet(np.ones(bursts)) * share * layout.file_bytes
        for length in np.maximum(lengths.astype(np.int64), 1).tolist():
            start = int(generator.integers(0, layout.file_bytes - length))
            touched |= units(layout, start, start + length)
        for _, number in touched:
            counts[number % layout.stripes] += 1
        good += bool(counts.max() <= layout.parity_blocks)
    return good / TRIALS


def units(layout: ParityGeometry, start: int, end: int) -> set[tuple[str, int]]:
    """The blocks and packets that a burst touches."""
    block, packet, tail = layout.block_bytes, layout.packet_bytes, layout.section_bytes
    parts = (  # unit, where its number 0 would be, the part of the file that it fills, its size
        ("block", 0, range(layout.offset), block),
        ("packet", layout.offset, range(layout.offset, layout.manifest_offset), packet),
        ("block", tail, range(layout.manifest_offset, layout.file_bytes), block),
    )
    found: set[tuple[str, int]] = set()
    for kind, origin, part, size in parts:
        low, high = max(start, part.start), min(end, part.stop)
        if low < high:
            numbers = range((low - origin) // size, (high - 1 - origin) // size + 1)
            found |= {(kind, number) for number in numbers}
    return found


def main() -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        large, pico = Path(temporary) / "random.tersor", Path(temporary) / "pico.tersor"
        random_bundle(large, megabytes=200)
        convert(ROOT / "examples" / "pico", pico, recipe=load_recipe("lossless"))
        for path in (large, pico):
            for share in (0.01, 0.05, 0.2):
                for measure, value in speeds(path, share):
                    print(f"  {path.stem:<8} {share:5.0%} {measure:<40} {value:8.1f}")
                    rows.append({
                        "bundle": path.stem, "bundle_bytes": path.stat().st_size,
                        "parity": share, "measure": measure, "value": round(value, 1),
                    })  # fmt: skip
    print(f"wrote {record.write('parity', rows)}")


if __name__ == "__main__":
    main()
