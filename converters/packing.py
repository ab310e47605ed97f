"""What a recipe makes of one tensor of a source: read, pruned, quantized, as planes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tersor.bundle.plane_data import PlaneData
from tersor.converters.errors import RecipeError, SourceError
from tersor.converters.prune import prune_magnitude_, prune_pattern_
from tersor.converters.quantize import (
    Quantized,
    quantize_bitmap,
    quantize_codebook4,
    quantize_fp8,
    quantize_int4,
    quantize_int6,
    quantize_int8,
)
from tersor.converters.recipe import PruneStep, QuantizeStep, Recipe
from tersor.converters.sources.base import PlannedTensor, Source
from tersor.converters.tensors import to_plane

_FIXED_GROUPS = {"mxfp4": 32, "nvfp4": 16}  # by their definitions
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTensor:
    """A tensor ready to be written, and what became of it."""

    layout: str
    params: Mapping[str, int | bool | str]
    planes: Mapping[str, PlaneData]
    squared_error: float
    energy: float  # sum of squares of the source values
    zeros: int | None  # counted only where a prune step ran


def pack(source: Source, tensor: PlannedTensor, recipe: Recipe) -> PackedTensor:
    """Reads one tensor and applies its steps; nothing of it outlives the returned planes.

    Raises:
        SourceError: the tensor cannot be read, or holds what cannot be pruned or quantized.
        RecipeError: a step of the recipe does not fit the tensor.
    """
    value = source.read(tensor)
    plan = recipe.plan(tensor)
    matrix = value.dtype in _FLOATS and value.dim() >= 2 and value.numel() > 0
    if plan.quantize is None and (plan.prune is None or not matrix):
        # A prune step selects broadly: vectors and integers stay.
        return _exact(tensor, value, plan.layout)
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
        exact = _exact(tensor, value, plan.layout)
        return replace(exact, squared_error=dropped, energy=energy, zeros=zeros)
    quantized = _quantize(value, plan.quantize, pruned=plan.prune is not None)
    # Pruned weights stay exact zeros, so the two errors are on disjoint weights and add up.
    return PackedTensor(
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


def _exact(tensor: PlannedTensor, value: Tensor, layout: str) -> PackedTensor:
    planes = {"values": PlaneData(dtype=tensor.dtype, array=to_plane(value))}
    return PackedTensor(
        layout=layout, params={}, planes=planes, squared_error=0.0, energy=0.0, zeros=None
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
        return quantize_int8(value, step=step.step or "row", activations=step.activations)
    if step.method == "fp8":
        return quantize_fp8(value, block=step.block, activations=step.activations)
    if step.method == "int6":
        return quantize_int6(value, step=step.step or "row", outliers=step.outliers)
    if step.method == "bitmap":
        return quantize_bitmap(value, values=step.values)
    if step.method in {"nf4", "mxfp4", "nvfp4", "pow2"}:
        group = _FIXED_GROUPS.get(step.method, step.group)
        return quantize_codebook4(value, step.method, group=group)
    # Without zero points all zeros are one symbol, which the codec pays for: pico pruned by half
    # takes 3.07 bits a weight instead of 3.91, at the same divergence.
    symmetric = pruned if step.symmetric is None else step.symmetric
    return quantize_int4(
        value,
        group=0 if step.step else step.group,
        symmetric=symmetric,
        step="tensor" if step.step == "tensor" else "group",
        outliers=step.outliers,
    )


def _energy(value: Tensor) -> float:
    rows = value.view(value.shape[0], -1)
    return sum(
        float(part.to(torch.float32).square().sum(dtype=torch.float64)) for part in rows.split(256)
    )
