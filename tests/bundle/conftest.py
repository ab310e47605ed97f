"""The bundle that attacks begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundles import write_tiny


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small valid bundle of every kind of plane."""
    path = tmp_path / "x.tersor"
    write_tiny(path)
    return path
