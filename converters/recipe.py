"""Recipes: which tensors are pruned and quantized, and how. TOML, strictly checked.

A recipe has two ordered lists of steps, `[[prune]]` and `[[quantize]]`. In each list the first step
whose selector matches a tensor decides; a tensor that no step matches is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, Literal

from tersor.converters.errors import RecipeError
from tersor.converters.recipe_file import parse_prune_argument, parse_recipe
from tersor.converters.sources.base import Kind, PlannedTensor

_FOLDER = Path(__file__).parent / "recipes"
_SHIPPED = ("float12", "fp8", "int4", "int6", "int8", "lossless", "mxfp4", "nf4", "pow2", "w8a8")

_LAYOUTS = dict.fromkeys(("nf4", "mxfp4", "nvfp4", "pow2"), "codebook4")  # others are their methods


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which tensors a step applies to: all conditions hold."""

    match: tuple[str, ...] = ("*",)  # globs over the bundle's name and the source names
    skip: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ("linear",)
    min_elements: int = 0

    def accepts(self, tensor: PlannedTensor) -> bool:
        """Whether `tensor` is selected."""
        names = (tensor.name, *(source.tensor for source in tensor.sources), *tensor.aliases)
        return (
            tensor.kind in self.kinds
            and prod(tensor.shape) >= self.min_elements
            and _any_match(names, self.match)
            and not _any_match(names, self.skip)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneStep:
    """Zeroes weights of least magnitude: a share of the tensor, or all but `keep` of every `of`."""

    where: Selector
    method: Literal["magnitude", "pattern"]
    fraction: float = 0.0
    keep: int = 0
    of: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeStep:
    """Stores a matrix in a compressed layout; `float12` and `keep` leave it exact."""

    where: Selector
    method: Literal[
        "int8", "int6", "int4", "fp8", "nf4", "mxfp4", "nvfp4", "pow2", "bitmap", "float12", "keep"
    ]
    group: int = 32  # int4, nf4, pow2: columns that share a scale; 0 is the whole row
    symmetric: bool | None = None  # int4: no zero points; None: exactly where a prune step ran
    # int8, int6, int4: what shares a scale; None: the row, of int4 the group.
    step: Literal["row", "tensor"] | None = None
    outliers: float = 0.0  # int6, int4: share of the weights kept beside the codes
    block: int = 0  # fp8: rows and columns that share a scale; 0 is the row
    # int8, fp8: what activations are rounded to, "16-bit" or the method's own name.
    activations: str = "16-bit"
    values: Literal["exact", "int8"] = "exact"  # bitmap: how non-zeros are stored


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """What a recipe does to one tensor."""

    prune: PruneStep | None
    quantize: QuantizeStep | None  # None: no bit is lost to its layout
    layout: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A checked recipe."""

    name: str
    description: str = ""
    prune: tuple[PruneStep, ...] = ()
    quantize: tuple[QuantizeStep, ...] = ()

    def with_prune(self, argument: str) -> Recipe:
        """This recipe with pruning of all linear matrices but the head, before its own steps.

        Args:
            argument: `magnitude:0.5` (share of zeros) or `2:4` (keep 2 of every 4 columns).

        Raises:
            RecipeError: any other text.
        """
        where = Selector(skip=("head",))
        step = PruneStep(where=where, **parse_prune_argument(argument))
        return replace(self, name=f"{self.name}+{argument}", prune=(step, *self.prune))

    def plan(self, tensor: PlannedTensor) -> TensorPlan:
        """The steps for `tensor`."""
        prune = next((step for step in self.prune if step.where.accepts(tensor)), None)
        quantize = next((step for step in self.quantize if step.where.accepts(tensor)), None)
        if quantize is None or quantize.method in {"float12", "keep"}:
            wanted = quantize is not None and quantize.method == "float12"
            layout = "float12" if wanted and _fits_float12(tensor) else "dense"
            return TensorPlan(prune=prune, quantize=None, layout=layout)
        return TensorPlan(
            prune=prune, quantize=quantize, layout=_LAYOUTS.get(quantize.method, quantize.method)
        )

    def to_json(self) -> Mapping[str, Any]:
        """The recipe as the manifest records it: every default written out."""
        values: Mapping[str, Any] = _jsonable(asdict(self))
        return values


def recipe_names() -> tuple[str, ...]:
    """The recipes that ship."""
    return _SHIPPED


def load_recipe(name_or_path: str, *, prune: str | None = None) -> Recipe:
    """A shipped recipe by name, or a TOML file by path (anything with a `/` or ending in `.toml`).

    Args:
        name_or_path: see above.
        prune: a prune step to put first, see `Recipe.with_prune`.

    Raises:
        RecipeError: unknown name, unreadable file, or a key, type or value that is not allowed.
    """
    if name_or_path in _SHIPPED:
        text = (_FOLDER / f"{name_or_path}.toml").read_text("utf-8")
        recipe = _build(name_or_path, parse_recipe(text, name_or_path))
    else:
        recipe = _load_file(name_or_path)
    return recipe if prune is None else recipe.with_prune(prune)


def _load_file(name_or_path: str) -> Recipe:
    path = Path(name_or_path)
    if path.suffix != ".toml" and path.name == name_or_path:
        raise RecipeError(
            f"there is no recipe {name_or_path!r}; expected {', '.join(_SHIPPED)}, "
            "or the path of a .toml file."
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}.") from error
    return _build(path.stem, parse_recipe(text, str(path)))


def _build(name: str, values: Mapping[str, Any]) -> Recipe:
    """From checked values: the parser has made sure that they fit the fields."""

    def split(step: Mapping[str, Any]) -> dict[str, Any]:
        selector = {key: step[key] for key in Selector.__slots__ if key in step}
        rest = {key: value for key, value in step.items() if key not in selector}
        return {"where": Selector(**selector), **rest}

    return Recipe(
        name=name,
        description=values.get("description", ""),
        prune=tuple(PruneStep(**split(step)) for step in values.get("prune", ())),
        quantize=tuple(QuantizeStep(**split(step)) for step in values.get("quantize", ())),
    )


def _fits_float12(tensor: PlannedTensor) -> bool:
    return tensor.dtype == "bf16" and len(tensor.shape) == 2 and prod(tensor.shape) > 0


def _any_match(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, tuple) else value
