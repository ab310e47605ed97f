"""Claim: bundles are as small as the best lossless peer, verified on every load, and no slower.

Ratio, encoding, decoding (stored bytes in memory to arrays) and loading (a file in the page cache
to arrays) of the same tensors in the same run: safetensors as it is and under zstd, ZipNN, Blosc2,
and bundles with each entropy coder alone and with the writer's choice. Every form has one thread,
takes its turn in every round, and gives every byte back or the run ends. Times are the processor
time of this process, medians: on a shared machine a clock measures the neighbours. Weights: pico
(bf16), MiniLM in its own float32 and rounded to bf16, and Gaussian bf16 rows, made a piece at a
time.

The rows "recipe …" are what `tersor convert` makes of a model folder, with its own threads.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import record
from real_weights import (
    GAUSSIAN_SHAPE,
    ROOT,
    ROW_SPREAD,
    Tensors,
    gaussian,
    gaussian_pieces,
    in_bf16,
    minilm,
    read_tensors,
)
from weight_formats import Form, all_forms, check

from tersor.bundle.decoding import default_threads
from tersor.bundle.reader import BundleReader
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

Row = dict[str, object]
_ENCODE_BASE = "safetensors + zstd -1"
_LOAD_BASE = "safetensors"
PACKAGES = ("numpy", "numba", "safetensors", "zstandard", "zipnn", "blosc2")


@dataclass(slots=True)
class Score:
    """What one form took for all parts of a model: sums of medians."""

    file_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def measure(forms: Sequence[Form], tensors: Tensors, rounds: int, work: Path) -> list[Score]:
    """Every form on one part of a model; one after the other, `rounds` times."""
    paths = [work / f"form{number}" for number in range(len(forms))]
    scores = [Score() for _ in forms]
    samples: list[dict[str, list[float]]] = [defaultdict(list) for _ in forms]
    for _ in range(rounds):
        for form, path, taken in zip(forms, paths, samples, strict=True):
            taken["encode"].append(form.encode(tensors, path))
    decoders = [form.fetch(path) for form, path in zip(forms, paths, strict=True)]
    for form, path, decode in zip(forms, paths, decoders, strict=True):
        check(form, decode(), tensors)
        check(form, form.load(path), tensors)
    for _ in range(rounds):
        for form, path, decode, taken in zip(forms, paths, decoders, samples, strict=True):
            taken["decode"].append(_seconds(decode))
            taken["load"].append(_seconds(partial(form.load, path)))
    for score, path, taken in zip(scores, paths, samples, strict=True):
        score.file_bytes = path.stat().st_size
        for what, values in taken.items():
            score.seconds[what] = statistics.median(values)
        path.unlink()
    return scores


def rows_of(
    model: str, parts: Iterator[Tensors], forms: Sequence[Form], rounds: int, work: Path
) -> Iterator[Row]:
    """One row a form."""
    totals = [Score() for _ in forms]
    raw = 0
    for tensors in parts:
        raw += sum(data.array.nbytes for data in tensors.values())
        for total, score in zip(totals, measure(forms, tensors, rounds, work), strict=True):
            total.file_bytes += score.file_bytes
            for what, value in score.seconds.items():
                total.seconds[what] += value
    by_name = {form.name: total for form, total in zip(forms, totals, strict=True)}
    encode_base, load_base = by_name[_ENCODE_BASE], by_name[_LOAD_BASE]
    for form, total in zip(forms, totals, strict=True):
        coded = total.seconds["encode"] > 0
        yield row(
            model,
            form.name,
            threads=1,
            verified=form.verified,
            file_bytes=total.file_bytes,
            ratio=total.file_bytes / load_base.file_bytes,
            encode=raw / 1e6 / total.seconds["encode"] if coded else None,
            decode=raw / 1e6 / total.seconds["decode"] if coded else None,
            load=raw / 1e6 / total.seconds["load"],
            encode_ratio=_ratio(encode_base, total, "encode") if coded else None,
            decode_ratio=_ratio(encode_base, total, "decode") if coded else None,
            load_ratio=_ratio(load_base, total, "load"),
        )


def recipes(model: str, source: Path, work: Path) -> Iterator[Row]:
    """What `tersor convert` makes of a model folder."""
    raw = (source / "model.safetensors").stat().st_size
    for recipe in ("lossless", "int8", "int4"):
        out = work / f"{model}-{recipe}.tersor"
        report = convert(source, out, recipe=load_recipe(recipe))
        with BundleReader.open(out) as reader:
            planes = {
                plane.digest: plane.stored_bytes
                for tensor in reader.manifest.tensors
                for plane in tensor.planes
            }
        yield row(
            model,
            f"recipe {recipe}",
            threads=min(2, default_threads()),
            verified=True,
            file_bytes=report.bundle_bytes,
            ratio=report.bundle_bytes / raw,
            weights_ratio=sum(planes.values()) / raw,
            convert_seconds=report.elapsed_seconds,
        )


def row(
    model: str, form: str, *, threads: int = 1, note: str = "", verified: bool = False,
    file_bytes: int | None = None, ratio: float | None = None, weights_ratio: float | None = None,
    encode: float | None = None, decode: float | None = None, load: float | None = None,
    encode_ratio: float | None = None, decode_ratio: float | None = None,
    load_ratio: float | None = None, convert_seconds: float | None = None,
) -> Row:  # fmt: skip
    """A line of the result, printed too; speeds in MB/s of raw weights."""
    result: Row = {
        "model": model,
        "form": form,
        "threads": threads,
        "verified": verified,
        "file_bytes": file_bytes,
        "file_ratio": _rounded(ratio, 4),
        "weights_ratio": _rounded(weights_ratio, 4),
        "encode_mb_per_second": _rounded(encode, 1),
        "decode_mb_per_second": _rounded(decode, 1),
        "load_mb_per_second": _rounded(load, 1),
        "encode_vs_zstd1": _rounded(encode_ratio, 3),
        "decode_vs_zstd1": _rounded(decode_ratio, 3),
        "load_vs_safetensors": _rounded(load_ratio, 3),
        "convert_seconds": _rounded(convert_seconds, 2),
        "note": note,
    }
    numbers = " ".join(f"{result[key]!s:>9}" for key in list(result)[5:13])
    print(f"  {model:<12} {form:<33} {numbers} {note}", flush=True)
    return result


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    result = function()
    elapsed = time.process_time() - start
    del result
    return elapsed


def _ratio(base: Score, score: Score, what: str) -> float:
    return base.seconds[what] / score.seconds[what]


def _rounded(value: float | None, digits: int) -> float | str:
    return "" if value is None else round(value, digits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="Gaussian weights; 0: none")
    parser.add_argument("--rounds", type=int, default=5, help="of the real models")
    parser.add_argument("--gaussian-rounds", type=int, default=3, help="of each Gaussian piece")
    arguments = parser.parse_args()
    forms, skipped = all_forms()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        sources = {
            "pico": ROOT / "examples" / "pico",
            "minilm-fp32": minilm(),
            "minilm-bf16": in_bf16(minilm(), work / "minilm-bf16"),
        }
        # Compiles what is compiled at its first call.
        measure(forms, read_tensors(sources["pico"] / "model.safetensors"), 1, work)
        for model, source in sources.items():
            tensors = read_tensors(source / "model.safetensors")
            rows += rows_of(model, iter([tensors]), forms, arguments.rounds, work)
            rows += [row(model, name, note=why) for name, why in skipped.items()]
            rows += recipes(model, source, work)
        if arguments.gigabytes > 0:
            pieces = gaussian_pieces(arguments.gigabytes)
            model = "gaussian-bf16"
            print(f"{pieces} matrices of {GAUSSIAN_SHAPE}, scales of rows spread by {ROW_SPREAD}")
            parts = ({"weight": gaussian(piece)} for piece in range(pieces))
            rows += rows_of(model, parts, forms, arguments.gaussian_rounds, work)
            rows += [row(model, name, note=why) for name, why in skipped.items()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.1f} GiB")
    print(f"wrote {record.write('bundle_formats', rows, packages=PACKAGES)}")


if __name__ == "__main__":
    main()
