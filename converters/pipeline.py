"""From a source to a bundle: one tensor at a time, pruned, quantized, written, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from tersor.bundle.manifest import Manifest, TensorEntry
from tersor.bundle.writer import BundleWriter, PlaneData
from tersor.converters.errors import DestinationError, RecipeError, SourceError
from tersor.converters.progress import ByteMeter, Progress
from tersor.converters.prune import prune_magnitude_, prune_pattern_
from tersor.converters.quantize import Quantized, quantize_int4, quantize_int8
from tersor.converters.recipe import PruneStep, QuantizeStep, Recipe
from tersor.converters.report import ConvertReport, TensorReport, bits_per_weight, certificate
from tersor.converters.sources import open_source
from tersor.converters.sources.base import PlannedTensor, Source
from tersor.converters.tensors import to_plane

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """A tensor ready to be written, and what became of it."""

    layout: str
    params: Mapping[str, int | bool]
    planes: Mapping[str, PlaneData]
    squared_error: float
    energy: float  # sum of squares of the source values
    zeros: int | None  # counted only where a prune step ran


def convert(
    src: Path,
    out: Path,
    *,
    recipe: Recipe,
    codec: str = "auto",
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
        manifest, reports = _write(source, out, recipe, codec, parity, progress)
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
        parity=parity,
    ) as writer:
        for tensor in source.tensors:
            meter.begin(tensor.name)
            packed = _pack(source, tensor, recipe)
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


def _pack(source: Source, tensor: PlannedTensor, recipe: Recipe) -> _Packed:
    """Reads one tensor and applies its steps; nothing of it outlives the returned planes."""
    value = source.read(tensor)
    plan = recipe.plan(tensor)
    matrix = value.dtype in _FLOATS and value.dim() >= 2 and value.numel() > 0
    if plan.quantize is None and (plan.prune is None or not matrix):
        return _exact(tensor, value)  # a prune step selects broadly: vectors and integers stay
    if not matrix:
        raise RecipeError(
            f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}; only bf16, f16 and f32 "
            "matrices can be quantized: leave it out with skip."
        )
    _check_finite(value, tensor.name)
    dropped = _prune(value, tensor, plan.prune) if plan.prune else 0.0
    energy = dropped + _energy(value)
    zeros = value.numel() - int(value.count_nonzero()) if plan.prune else None
    if plan.quantize is None:
        exact = _exact(tensor, value)
        return replace(exact, squared_error=dropped, energy=energy, zeros=zeros)
    quantized = _quantize(value, plan.quantize, pruned=plan.prune is not None)
    # Pruned weights stay exact zeros, so the two errors are on disjoint weights and add up.
    return _Packed(
        layout=quantized.layout,
        params=quantized.params,
        planes={
            k: PlaneData(dtype=dtype, array=to_plane(t))
            for k, (dtype, t) in quantized.planes.items()
        },
        squared_error=dropped + quantized.squared_error,
        energy=energy,
        zeros=zeros,
    )


def _exact(tensor: PlannedTensor, value: Tensor) -> _Packed:
    planes = {"values": PlaneData(dtype=tensor.dtype, array=to_plane(value))}
    return _Packed(
        layout="dense", params={}, planes=planes, squared_error=0.0, energy=0.0, zeros=None
    )


def _check_finite(value: Tensor, name: str) -> None:
    low, high = torch.aminmax(value)  # NaN propagates into both, and no copy is made
    if not bool(low.isfinite() & high.isfinite()):
        raise SourceError(
            f"{name} holds NaN or infinite weights, which cannot be pruned or quantized; "
            "the checkpoint is damaged, or leave the tensor out with skip."
        )


def _prune(value: Tensor, tensor: PlannedTensor, step: PruneStep) -> float:
    """Prunes in place, each source tensor by itself: v is smaller than the q and k it is fused
    with and would lose more than its share. Returns the energy that went.
    """
    if step.method == "pattern":
        return prune_pattern_(value.view(value.shape[0], -1), step.keep, step.of)
    parts = value.split([source.rows for source in tensor.sources] or [value.shape[0]])
    return sum(prune_magnitude_(part, step.fraction) for part in parts)


def _quantize(value: Tensor, step: QuantizeStep, *, pruned: bool) -> Quantized:
    if step.method == "int8":
        return quantize_int8(value)
    # Without zero points all zeros are one symbol, which the codec pays for: pico pruned by half
    # takes 3.07 bits a weight instead of 3.91, at the same divergence.
    symmetric = pruned if step.symmetric is None else step.symmetric
    return quantize_int4(value, group=step.group, symmetric=symmetric)


def _energy(value: Tensor) -> float:
    rows = value.view(value.shape[0], -1)
    return sum(
        float(part.to(torch.float32).square().sum(dtype=torch.float64)) for part in rows.split(256)
    )


def _report(tensor: PlannedTensor, packed: _Packed, entry: TensorEntry) -> TensorReport:
    elements = prod(tensor.shape)
    return TensorReport(
        name=tensor.name,
        layout=packed.layout,
        elements=elements,
        stored_bytes=sum(plane.stored_bytes for plane in entry.planes),
        relative_error=(packed.squared_error / packed.energy) ** 0.5 if packed.energy else 0.0,
        zeros=None if packed.zeros is None else packed.zeros / max(1, elements),
    )
