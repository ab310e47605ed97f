"""`tersor inspect`, `verify` and `extract`: looking into a bundle, checking it, taking it apart."""

from __future__ import annotations

import json as json_module
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.bundle.location import parse_location
from tersor.bundle.manifest import Manifest, TensorEntry
from tersor.bundle.program import DecoderProgram
from tersor.cli.console import Cell, print_json, print_pairs, print_table
from tersor.cli.options import BundleArgument, JsonOption
from tersor.cli.progress import ProgressBar
from tersor.cli.signals import stoppable
from tersor.cli.verified import check
from tersor.runtime.config import format_bytes

BundlesArgument = Annotated[
    list[str], typer.Argument(metavar="BUNDLE", help="Bundles to check: files or URLs.")
]


def inspect(
    bundle: BundleArgument,
    *,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what a bundle holds, without reading weights."""
    from tersor.bundle.reader import BundleReader

    with BundleReader.open(parse_location(bundle)) as reader:
        manifest, file_bytes = reader.manifest, reader.file_bytes
    if json:
        print_json(_manifest_json(manifest, file_bytes))
        return
    print_pairs(_summary(manifest, file_bytes))
    rows = _tensor_rows(manifest) if tensors else _layout_rows(manifest)
    columns = ("tensor", "shape", "dtype", "layout", "stored", "bits/weight", "codecs")
    print_table("", columns if tensors else ("layout", "tensors", "stored", "bits/weight"), rows)


def verify(bundles: BundlesArgument, *, json: JsonOption = False) -> None:
    """Check every checksum and digest.

    Lists what is damaged, and says whether `tersor repair` would restore it; the exit code is 1 if
    anything is damaged.
    """
    results = {str(place): check(place) for place in map(parse_location, bundles)}
    if json:
        print_json({path: result.to_json() for path, result in results.items()})
    else:
        for path, result in results.items():
            result.print(path)
    if not all(result.ok for result in results.values()):
        raise typer.Exit(1)


def extract(
    bundle: BundleArgument,
    *,
    output: Annotated[Path, typer.Option(help="Folder to write; made if missing.")],
    force: Annotated[bool, typer.Option("--force", help="Write into a folder with files.")] = False,
    json: JsonOption = False,
) -> None:
    """Get a checkpoint back from a bundle.

    Writes the tensors under their original names, and the files the bundle carries. A lossless
    bundle gives back every bit; any other the decoded weights.
    """
    from tersor.converters.extract import extract as run

    with stoppable(), ProgressBar(visible=not json) as progress:
        report = run(parse_location(bundle), output, progress=progress, force=force)
    if json:
        print_json(report)
        return
    print_pairs(
        {
            "folder": str(output),
            "tensors": report.tensors,
            "weights": format_bytes(report.weights_bytes),
            "values": "bit for bit" if report.exact else "approximate (the recipe lost some bits)",
        }
    )


def _summary(manifest: Manifest, file_bytes: int) -> dict[str, Cell]:
    program = manifest.program
    if isinstance(program, DecoderProgram):
        kind = (
            f"decoder ({program.family}, {program.num_layers} layers, hidden "
            f"{program.hidden_size}, vocabulary {program.vocab_size}, "
            f"context {program.max_context})"
        )
    else:
        inputs = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in program.inputs)
        outputs = ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in program.outputs)
        kind = f"graph ({inputs} -> {outputs})"
    certificate = manifest.certificate or {}
    return {
        "program": kind,
        "recipe": str(manifest.recipe.get("name", "")),
        "file": format_bytes(file_bytes),
        "weights": format_bytes(sum(plane.stored_bytes for plane in _stored_planes(manifest))),
        "parity": _parity(manifest),
        "groups": len(manifest.groups),
        "assets": ", ".join(asset.name for asset in manifest.assets),
        "largest relative error": certificate.get("max_relative_error", "not measured"),
        "digest": manifest.digest,
        "producer": manifest.producer,
    }


def _parity(manifest: Manifest) -> str:
    if manifest.parity is None:
        return "none"
    parity = manifest.parity
    return (
        f"{parity.parity_blocks} blocks for {parity.data_blocks}, "
        f"{format_bytes(parity.block_bytes)} each"
    )


def _stored_planes(manifest: Manifest) -> list[Any]:
    """Every plane at rest once: duplicates share their chunks."""
    from tersor.bundle.validate import stored_planes

    return list(stored_planes(manifest))


def _bits_per_weight(stored_bytes: int, tensors: list[TensorEntry]) -> float:
    weights = 0
    for tensor in tensors:
        count = 1
        for size in tensor.shape:
            count *= size
        weights += count
    return 8 * stored_bytes / max(1, weights)


def _stored_bytes(tensor: TensorEntry) -> int:
    return sum(plane.stored_bytes for plane in tensor.planes)


def _layout_rows(manifest: Manifest) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for layout in sorted({tensor.layout for tensor in manifest.tensors}):
        members = [tensor for tensor in manifest.tensors if tensor.layout == layout]
        stored = sum(_stored_bytes(tensor) for tensor in members)
        bits = _bits_per_weight(stored, members)
        rows.append((layout, len(members), format_bytes(stored), round(bits, 3)))
    return rows


def _tensor_rows(manifest: Manifest) -> list[tuple[Cell, ...]]:
    return [
        (
            tensor.name,
            "x".join(map(str, tensor.shape)) or "scalar",
            tensor.dtype,
            tensor.layout,
            format_bytes(_stored_bytes(tensor)),
            round(_bits_per_weight(_stored_bytes(tensor), [tensor]), 3),
            _codecs(tensor),
        )
        for tensor in manifest.tensors
    ]


def _codecs(tensor: TensorEntry) -> str:
    """For example "codes: zstd; scales: raw, zstd"."""
    parts = []
    for plane in tensor.planes:
        used = Counter(chunk.codec for stream in plane.streams for chunk in stream.chunks)
        parts.append(f"{plane.name}: {', '.join(sorted(used))}")
    return "; ".join(parts)


def _manifest_json(manifest: Manifest, file_bytes: int) -> dict[str, Any]:
    """The manifest as the file has it, so that shared planes are told once."""
    from tersor.bundle.manifest_json import manifest_to_json

    return {"file_bytes": file_bytes, **json_module.loads(manifest_to_json(manifest))}
