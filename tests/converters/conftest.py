"""Bundles that several test modules look at, converted once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES: Mapping[str, tuple[str, str | None]] = {
    "lossless": ("lossless", None),
    "int8": ("int8", None),
    "int4": ("int4", None),
    "int8-pruned": ("int8", "magnitude:0.5"),
    "int4-pruned": ("int4", "magnitude:0.5"),
    "lossless-2:4": ("lossless", "2:4"),
    "float12": ("float12", None),
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors: a second thread only costs."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pico() -> Path:
    return EXAMPLES / "pico"


@pytest.fixture(scope="session")
def heldout() -> str:
    return (EXAMPLES / "pico-heldout.txt").read_text("utf-8")


@pytest.fixture(scope="session")
def pico_bundles(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Pico by every recipe of `RECIPES`."""
    folder = tmp_path_factory.mktemp("pico")
    bundles = {}
    for name, (recipe, prune) in RECIPES.items():
        bundles[name] = folder / f"pico-{name.replace(':', '-')}.tersor"
        convert(pico, bundles[name], recipe=load_recipe(recipe, prune=prune))
    return bundles
