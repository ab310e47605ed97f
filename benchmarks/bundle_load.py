"""Claim: two threads load a bundle 1.7 times as fast as one, and verification costs at most 5 %.

Whole bundles, every plane, from the page cache into new arrays. One and two threads take turns; the
speed-up is between the best of each, since a neighbour on a shared machine can only slow down.
`others_percent` is how much of the processors other processes had meanwhile, `steal_percent` other
machines: where they are not small, the speed-up is too low.

What verification costs is told twice: its share of the phases of a load on one thread, and the
processor time of such a load with verification against one without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import record
from real_weights import Tensors, gaussian, in_bf16, minilm, read_tensors, write_bundle

from tersor.bundle.decoding import BlockDecoder
from tersor.bundle.dtypes import AnyArray
from tersor.bundle.phases import PhaseTimes
from tersor.bundle.reader import BundleReader

Row = dict[str, object]
PACKAGES = ("numpy", "numba", "xxhash", "zstandard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processors:
    """Seconds of all processors since the machine started, and of this process."""

    busy: float
    steal: float
    total: float
    own: float

    @classmethod
    def now(cls) -> Processors:
        """Read from the kernel; Linux only."""
        user, nice, system, idle, wait, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
        )
        tick = os.sysconf("SC_CLK_TCK")
        busy = user + nice + system + irq + softirq
        return cls(
            busy=busy / tick,
            steal=steal / tick,
            total=(busy + idle + wait + steal) / tick,
            own=time.process_time(),
        )

    def since(self, start: Processors) -> tuple[float, float]:
        """Percent of the processors that other processes had, and other machines."""
        total = max(self.total - start.total, 1e-9)
        others = (self.busy - start.busy) - (self.own - start.own)
        return 100 * max(0.0, others) / total, 100 * (self.steal - start.steal) / total


def load(reader: BundleReader, times: PhaseTimes | None = None) -> list[AnyArray]:
    """Every plane, in the file's order."""
    return [
        reader.read_plane(plane, times=times)
        for tensor in reader.manifest.tensors
        for plane in tensor.planes
    ]


def wall(reader: BundleReader) -> float:
    start = time.perf_counter()
    arrays = load(reader)
    elapsed = time.perf_counter() - start
    del arrays
    return elapsed


def processor(reader: BundleReader) -> float:
    start = time.process_time()
    arrays = load(reader)
    elapsed = time.process_time() - start
    del arrays
    return elapsed


def scaling(path: Path, rounds: int) -> Row:
    """One thread against two, in turns."""
    with BundleReader.open(path, threads=1) as one, BundleReader.open(path, threads=2) as two:
        megabytes = sum(array.nbytes for array in load(one)) / 1e6
        load(two)
        before = Processors.now()
        samples = [(wall(one), wall(two)) for _ in range(rounds)]
        others, steal = Processors.now().since(before)
    single = [first for first, _ in samples]
    double = [second for _, second in samples]
    return {
        "megabytes": round(megabytes, 1),
        "load_1_mb_per_second": round(megabytes / min(single)),
        "load_2_mb_per_second": round(megabytes / min(double)),
        "speed_up": round(min(single) / min(double), 3),
        "speed_up_median": round(statistics.median(a / b for a, b in samples), 3),
        "others_percent": round(others, 1),
        "steal_percent": round(steal, 1),
    }


def verification(path: Path, rounds: int) -> Row:
    """What checksums cost a load on one thread, in percent of it."""
    times = PhaseTimes()
    checked, unchecked = [], []
    with BundleReader.open(path, threads=1) as reader:
        for _ in range(rounds):
            load(reader, times)
            checked.append(processor(reader))
            with patch.object(BlockDecoder, "verify", lambda *_: None):
                unchecked.append(processor(reader))
    total = sum(times.seconds.values())
    shares = {
        f"{phase}_share": round(seconds / total, 4) for phase, seconds in times.seconds.items()
    }
    difference = statistics.median(checked) - statistics.median(unchecked)
    return {**shares, "verify_percent": round(100 * difference / statistics.median(checked), 2)}


def bundles(work: Path) -> Iterator[tuple[str, str, Path]]:
    """Weights and codec, and a bundle of them."""
    halved = in_bf16(minilm(), work / "minilm-bf16") / "model.safetensors"
    models: dict[str, Tensors] = {
        "gaussian-bf16": {str(piece): gaussian(piece) for piece in range(2)},
        "minilm-bf16": read_tensors(halved),
        "minilm-fp32": read_tensors(minilm() / "model.safetensors"),
    }
    for model, tensors in models.items():
        for codec in ("auto", "huffman", "zstd", "raw"):
            path = work / "load.tersor"
            write_bundle(path, tensors, codec)
            yield model, codec, path
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for model, codec, path in bundles(Path(temporary)):
            row: Row = {
                "model": model,
                "codec": codec,
                **scaling(path, arguments.rounds),
                **verification(path, arguments.rounds),
            }
            print("  " + " ".join(f"{value!s:>9}" for value in row.values()), flush=True)
            rows.append(row)
    print(f"wrote {record.write('bundle_load', rows, packages=PACKAGES)}")


if __name__ == "__main__":
    main()
