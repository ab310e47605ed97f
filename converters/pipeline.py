"""From a source to a bundle: one tensor at a time, pruned, quantized, written, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from pathlib import Path

from tersor.bundle.codecs import AUTO
from tersor.bundle.encoding import DECODE_FLOOR_MB_PER_SECOND
from tersor.bundle.manifest import Manifest, TensorEntry
from tersor.bundle.writer import BundleWriter
from tersor.converters.errors import DestinationError
from tersor.converters.packing import PackedTensor, pack
from tersor.converters.progress import ByteMeter, Progress
from tersor.converters.recipe import Recipe
from tersor.converters.report import ConvertReport, TensorReport, bits_per_weight, certificate
from tersor.converters.sources import open_source
from tersor.converters.sources.base import PlannedTensor, Source


def convert(
    src: Path,
    out: Path,
    *,
    recipe: Recipe,
    codec: str = AUTO,
    decode_floor: float = DECODE_FLOOR_MB_PER_SECOND,
    parity: float | None = None,
    progress: Progress | None = None,
    force: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> ConvertReport:
    """Converts the model at `src` into the bundle `out`.

    Peak memory is a few times the largest tensor, whatever the model's size. The same source,
    recipe, codec and version give the same bytes.

    Args:
        src: a Hugging Face folder, or a `.pt2` file written by `torch.export.save`.
        out: the bundle; appears whole or not at all.
        recipe: what to do to which tensors.
        codec: `auto` keeps the smallest of what it tries for each plane; or one codec's name.
        decode_floor: MB/s that a codec must be rated to decode on one core, for `auto` to take it.
        parity: parity blocks for each block of data, 0.005 to 0.5; None is no parity.
        progress: told of every tensor.
        force: replace `out` if it exists.
        clock: seconds, for the report's `elapsed_seconds`.

    Raises:
        SourceError: `src` is not a complete model, or of a kind this build cannot convert.
        RecipeError: the recipe does not fit the model.
        DestinationError: `out` exists and `force` is not set, or cannot be written.
    """
    start = clock()
    _check_destination(src, out, force=force)
    source = open_source(src)
    try:
        manifest, reports = _write(source, out, recipe, codec, decode_floor, parity, progress)
    except OSError as error:
        raise DestinationError(f"{out} cannot be written: {error.strerror}.") from error
    bundle_bytes = out.stat().st_size
    return ConvertReport(
        bundle=out,
        source_bytes=source.files_bytes,
        bundle_bytes=bundle_bytes,
        ratio=bundle_bytes / max(1, source.files_bytes),
        bits_per_weight=bits_per_weight(reports),
        digest=manifest.digest,
        recipe=recipe.name,
        tensors=reports,
        elapsed_seconds=clock() - start,
    )


def _check_destination(src: Path, out: Path, *, force: bool) -> None:
    if out.is_dir():
        raise DestinationError(f"{out} is a folder; expected the name of a bundle to write.")
    if not out.absolute().parent.is_dir():
        raise DestinationError(
            f"the folder {out.absolute().parent} does not exist; create it first."
        )
    if not out.exists():
        return
    if not force:
        raise DestinationError(f"{out} exists; choose another name, or replace it with --force.")
    inside = src.is_dir() and out.resolve().parent == src.resolve() and out.suffix != ".tersor"
    if inside or (src.exists() and out.samefile(src)):
        raise DestinationError(f"{out} is a part of the source; choose another name.")


def _write(
    source: Source,
    out: Path,
    recipe: Recipe,
    codec: str,
    decode_floor: float,
    parity: float | None,
    progress: Progress | None,
) -> tuple[Manifest, tuple[TensorReport, ...]]:
    reports: list[TensorReport] = []
    meter = ByteMeter(progress, source.source_bytes)
    with BundleWriter(
        out,
        program=source.program,
        source=source.description,
        recipe=recipe.to_json(),
        codec=codec,
        decode_floor=decode_floor,
        parity=parity,
    ) as writer:
        for tensor in source.tensors:
            meter.begin(tensor.name)
            packed = pack(source, tensor, recipe)
            entry = writer.add_tensor(
                name=tensor.name,
                group=tensor.group,
                shape=tensor.shape,
                dtype=tensor.dtype,
                layout=packed.layout,
                params=packed.params,
                planes=packed.planes,
                sources=tensor.sources,
                aliases=tensor.aliases,
            )
            reports.append(_report(tensor, packed, entry))
            del packed
            meter.finish(tensor.name, tensor.source_bytes)
        for asset in source.assets:
            writer.add_asset(asset.name, asset.data, asset.media_type)
        return writer.commit(certificate=certificate(reports)), tuple(reports)


def _report(tensor: PlannedTensor, packed: PackedTensor, entry: TensorEntry) -> TensorReport:
    elements = prod(tensor.shape)
    return TensorReport(
        name=tensor.name,
        layout=packed.layout,
        elements=elements,
        stored_bytes=sum(plane.stored_bytes for plane in entry.planes),
        relative_error=(packed.squared_error / packed.energy) ** 0.5 if packed.energy else 0.0,
        zeros=None if packed.zeros is None else packed.zeros / max(1, elements),
    )
