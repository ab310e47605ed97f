"""Promises of the project files: versions agree, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "benchmarks/*.md", "deploy/*.md")
    for path in ROOT.glob(pattern)
)


def test_the_version_is_the_newest_of_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert project["version"] == newest.group(1)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing


def test_commands_in_the_readme_exist() -> None:
    from typer.main import get_command

    from tersor.cli.main import app

    commands = set(getattr(get_command(app), "commands", {}))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^tersor (\w+)", text, re.MULTILINE)) <= commands


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"make ([a-z-]+)", text)) <= targets


def test_nothing_names_a_machine_or_a_registry() -> None:
    pattern = re.compile(r"/w[o]rk/|/h[o]me/\w+/|/r[o]ot/|pypi\.o[r]g|pythonh[o]sted")
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".proto", ""}
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        made = {"typecheck", "out", "build", "dist"}  # or a view of what is read already
        if parts[0] in made or (parts[0] != ".ci" and any(p.startswith(".") for p in parts[:-1])):
            continue
        if path.is_file() and path.suffix in suffixes and "pico" not in path.name:
            text = path.read_text(encoding="utf-8", errors="ignore")
            found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in pattern.finditer(text)]
    assert not found


def test_the_list_of_modules_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "modules.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
