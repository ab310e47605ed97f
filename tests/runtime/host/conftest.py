from __future__ import annotations

from pathlib import Path

import pytest

from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

PICO = Path(__file__).parents[3] / "examples" / "pico"


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example language model as a bundle. Read-only."""
    bundle = tmp_path_factory.mktemp("bundles") / "pico.tersor"
    convert(PICO, bundle, recipe=load_recipe("int8"))
    return bundle
