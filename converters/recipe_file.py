"""The text of a recipe: every key, type and range is checked, and the message names all three."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tersor.converters.errors import RecipeError

_PRUNE_PATTERN = re.compile(r"(\d{1,3}):(\d{1,3})")
_PRUNE_MAGNITUDE = re.compile(r"magnitude:(\d*\.?\d+)")
_MAX_BLOCK = 64  # columns of an n:m pattern
_MAX_OUTLIERS = 0.05  # beyond, their 48 bits cost more than one bit more for every weight
_GROUPS = (0, 16, 32, 64, 128, 256)
_BLOCKS = (0, 128)
_WIDE = "16-bit"  # activations as they are


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of a step: what it accepts, in words, and how its value is stored."""

    allowed: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


def _is_globs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _one_of(*names: str) -> _Key:
    return _Key(f"one of {', '.join(names)}", lambda value: value in names)


def _list_of(*names: str) -> _Key:
    return _Key(
        f"a list of {', '.join(names)}",
        lambda value: isinstance(value, list) and bool(value) and all(v in names for v in value),
        tuple,
    )


_GLOBS = _Key("a list of globs over tensor names", _is_globs, tuple)
_SELECTOR: Mapping[str, _Key] = {
    "match": _GLOBS,
    "skip": _GLOBS,
    "min_elements": _Key("a whole number from 0", lambda value: _is_whole(value, 0, 1 << 48)),
}
_PRUNE: Mapping[str, _Key] = {
    **_SELECTOR,
    "kinds": _list_of("linear", "embedding", "other"),
    "method": _one_of("magnitude", "pattern"),
    "fraction": _Key("a number between 0 and 1", _is_share, float),
    "keep": _Key(
        f"a whole number from 1 to {_MAX_BLOCK}", lambda value: _is_whole(value, 1, _MAX_BLOCK)
    ),
    "of": _Key(
        f"a whole number from 2 to {_MAX_BLOCK}", lambda value: _is_whole(value, 2, _MAX_BLOCK)
    ),
}
_QUANTIZE: Mapping[str, _Key] = {
    **_SELECTOR,
    # Only these have operators that compute on a compressed weight.
    "kinds": _list_of("linear", "embedding"),
    "method": _one_of(
        "int8", "int6", "int4", "fp8", "nf4", "mxfp4", "nvfp4", "pow2", "bitmap", "float12", "keep"
    ),
    "group": _Key(
        f"one of {', '.join(map(str, _GROUPS))} (0: the whole row)",
        lambda value: _is_whole(value, 0, 256) and value in _GROUPS,
    ),
    "symmetric": _Key("true or false", lambda value: isinstance(value, bool)),
    "step": _one_of("row", "tensor"),
    "block": _Key(
        f"one of {', '.join(map(str, _BLOCKS))} (0: a scale per row)",
        lambda value: _is_whole(value, 0, 128) and value in _BLOCKS,
    ),
    "activations": _one_of(_WIDE, "int8", "fp8"),
    "outliers": _Key(
        f"a share above 0, up to {_MAX_OUTLIERS}",
        lambda value: _is_share(value) and value <= _MAX_OUTLIERS,
        float,
    ),
    "values": _one_of("exact", "int8"),
}
_NEEDED: Mapping[str, tuple[str, ...]] = {"magnitude": ("fraction",), "pattern": ("keep", "of")}
_OPTIONS = ("group", "symmetric", "step", "outliers", "block", "activations", "values")
_METHOD_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "int8": ("step", "activations"),
    "int6": ("step", "outliers"),
    "int4": ("group", "symmetric", "step", "outliers"),
    "fp8": ("block", "activations"),
    "nf4": ("group",),
    "pow2": ("group",),
    "bitmap": ("values",),
    **dict.fromkeys(("mxfp4", "nvfp4", "float12", "keep"), ()),
}
_FOREIGN: Mapping[str, tuple[str, ...]] = {
    "magnitude": ("keep", "of"),
    "pattern": ("fraction",),
    **{
        method: tuple(key for key in _OPTIONS if key not in own)
        for method, own in _METHOD_OPTIONS.items()
    },
}
_TOP = ("description", "prune", "quantize")


def parse_recipe(text: str, name: str) -> Mapping[str, Any]:
    """The values of a recipe's TOML, checked; `name` is how messages call it.

    Raises:
        RecipeError: names the key, what it is, and what is allowed.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name} is not valid TOML: {error}.") from error
    for key in values:
        if key not in _TOP:
            raise RecipeError(f"recipe {name}: unknown key {key!r}; allowed are {', '.join(_TOP)}.")
    description = values.get("description", "")
    if not isinstance(description, str):
        raise RecipeError(f"recipe {name}: description is {description!r}; expected a string.")
    return {
        "description": description,
        "prune": _steps(values.get("prune", []), "prune", _PRUNE, name),
        "quantize": _steps(values.get("quantize", []), "quantize", _QUANTIZE, name),
    }


def parse_prune_argument(text: str) -> dict[str, Any]:
    """`magnitude:0.5` or `2:4` as the fields of a prune step.

    Raises:
        RecipeError: any other text.
    """
    magnitude, pattern = _PRUNE_MAGNITUDE.fullmatch(text), _PRUNE_PATTERN.fullmatch(text)
    if magnitude and 0 < float(magnitude[1]) < 1:
        return {"method": "magnitude", "fraction": float(magnitude[1])}
    if pattern and 1 <= int(pattern[1]) < int(pattern[2]) <= _MAX_BLOCK:
        return {"method": "pattern", "keep": int(pattern[1]), "of": int(pattern[2])}
    raise RecipeError(
        f"prune is {text!r}; expected magnitude:SHARE with a share of zeros between 0 and 1 "
        f"(magnitude:0.5), or KEEP:OF with KEEP < OF <= {_MAX_BLOCK} (2:4)."
    )


def _steps(
    steps: Any, kind: str, keys: Mapping[str, _Key], recipe: str
) -> tuple[dict[str, Any], ...]:
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise RecipeError(f"recipe {recipe}: {kind} must be a list of tables; write [[{kind}]].")
    return tuple(
        _step(step, keys, f"recipe {recipe}: [[{kind}]] number {index}")
        for index, step in enumerate(steps, 1)
    )


def _step(step: Mapping[str, Any], keys: Mapping[str, _Key], where: str) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for key, value in step.items():
        if key not in keys:
            raise RecipeError(f"{where}: unknown key {key!r}; allowed are {', '.join(keys)}.")
        if not keys[key].accepts(value):
            raise RecipeError(f"{where}: {key} is {value!r}; expected {keys[key].allowed}.")
        checked[key] = keys[key].convert(value)
    if "method" not in checked:
        raise RecipeError(f"{where}: method is missing; expected {keys['method'].allowed}.")
    method = checked["method"]
    for key in _NEEDED.get(method, ()):
        if key not in checked:
            raise RecipeError(f"{where}: method {method!r} needs {key}, {keys[key].allowed}.")
    for key in _FOREIGN.get(method, ()):
        if key in checked:
            raise RecipeError(f"{where}: {key} means nothing for method {method!r}; remove it.")
    if checked.get("activations", _WIDE) not in (_WIDE, method):
        raise RecipeError(
            f"{where}: activations is {checked['activations']!r}; expected {_WIDE!r} or {method!r} "
            f"for method {method!r}."
        )
    if "step" in checked and checked.get("group", 0):
        raise RecipeError(
            f"{where}: step is {checked['step']!r} and group {checked['group']}; a scale is for a "
            "group of columns, or for a whole row or tensor: remove one of both."
        )
    if method == "pattern" and checked["keep"] >= checked["of"]:
        raise RecipeError(
            f"{where}: keep is {checked['keep']}; expected less than of, which is {checked['of']}."
        )
    return checked
