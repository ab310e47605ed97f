"""The planes of a model, tensor by tensor: made by a recipe, or as a bundle holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod

from tersor.bundle.location import BundleUrl, Location
from tersor.bundle.manifest import DTYPES, TensorEntry
from tersor.bundle.plane_data import PlaneData
from tersor.bundle.reader import BundleReader
from tersor.converters.errors import RecipeError
from tersor.converters.packing import pack
from tersor.converters.recipe import Recipe, load_recipe
from tersor.converters.sources import open_source
from tersor.converters.sources.base import PlannedTensor, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlanes:
    """A tensor in its layout."""

    layout: str
    planes: Mapping[str, PlaneData]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuppliedTensor:
    """A tensor whose planes can be had, one tensor at a time."""

    name: str
    family: str  # tensors of one family have the same kinds of planes
    num_bytes: int  # in memory, at least those of each of its planes; more than 0
    load: Callable[[], TensorPlanes]  # raises as `open_planes`


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSupply:
    """All tensors of a model, in execution order."""

    recipe: str  # its name
    tensors: tuple[SuppliedTensor, ...]


@contextmanager
def open_planes(place: Location, recipe: Recipe | None) -> Iterator[PlaneSupply]:
    """The planes of a model folder, a `.pt2` file or a bundle, loadable inside the `with` block.

    Args:
        place: a folder or a `.pt2` file is a source; anything else must be a bundle.
        recipe: what makes a source's planes; None is lossless, and all that a bundle takes.

    Raises:
        SourceError: the source is not a complete model.
        RecipeError: the recipe does not fit the model, or `place` is a bundle.
        BundleError: the bundle cannot be read.
    """
    if not isinstance(place, BundleUrl) and (place.is_dir() or place.suffix == ".pt2"):
        yield _of_source(open_source(place), recipe or load_recipe("lossless"))
        return
    if recipe is not None:
        raise RecipeError(
            f"{place} is not a model folder or a .pt2 file, and the planes of a bundle are made "
            "already; leave the recipe out."
        )
    with BundleReader.open(place) as reader:
        yield _of_bundle(reader)


def _of_source(source: Source, recipe: Recipe) -> PlaneSupply:
    def load(tensor: PlannedTensor) -> TensorPlanes:
        packed = pack(source, tensor, recipe)
        return TensorPlanes(layout=packed.layout, planes=packed.planes)

    return PlaneSupply(
        recipe=recipe.name,
        tensors=tuple(
            SuppliedTensor(
                name=tensor.name,
                family=_planned_family(tensor, recipe),
                num_bytes=max(1, prod(tensor.shape) * DTYPES[tensor.dtype]),
                load=partial(load, tensor),
            )
            for tensor in source.tensors
        ),
    )


def _planned_family(tensor: PlannedTensor, recipe: Recipe) -> str:
    return _family(recipe.plan(tensor).layout, tensor.dtype)


def _family(layout: str, dtype: str) -> str:
    """Only a dense plane has its tensor's dtype."""
    return f"{layout} {dtype}" if layout == "dense" else layout


def _of_bundle(reader: BundleReader) -> PlaneSupply:
    def load(tensor: TensorEntry) -> TensorPlanes:
        planes = {
            plane.name: PlaneData(dtype=plane.dtype, array=reader.read_plane(plane))
            for plane in tensor.planes
        }
        return TensorPlanes(layout=tensor.layout, planes=planes)

    return PlaneSupply(
        recipe=str(reader.manifest.recipe.get("name", "")),
        tensors=tuple(
            SuppliedTensor(
                name=tensor.name,
                family=_family(tensor.layout, tensor.dtype),
                num_bytes=max(1, sum(plane.raw_bytes for plane in tensor.planes)),
                load=partial(load, tensor),
            )
            for tensor in reader.manifest.tensors
        ),
    )
