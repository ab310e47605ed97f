"""The command, called in this process: exit code, stdout and stderr as a user would see them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command import Command, Outcome

from tersor.cli.main import main


@pytest.fixture
def tersor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `tersor …` and returns its outcome."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tersor", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, pico_dir: Path) -> dict[str, Path]:
    """Pico converted by each shipped recipe."""
    from tersor.converters.pipeline import convert
    from tersor.converters.recipe import load_recipe, recipe_names

    folder = tmp_path_factory.mktemp("bundles")
    paths = {name: folder / f"pico-{name}.tersor" for name in recipe_names()}
    for name, path in paths.items():
        convert(pico_dir, path, recipe=load_recipe(name))
    return paths
