"""The bundle that attacks begin with, and a server of bundles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from http_sources import DATA
from range_server import RangeServer, range_server
from tiny_bundles import add, symbols, weights, write_tiny, writer

from tersor.bundle import limits


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small valid bundle of every kind of plane."""
    path = tmp_path / "x.tersor"
    write_tiny(path)
    return path


@pytest.fixture(scope="session")
def served_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two planes of several blocks, one of them raw, and small ones."""
    path = tmp_path_factory.mktemp("http") / "x.tersor"
    with writer(path) as target:
        add(target, "split", "bf16", weights((6000, 800)))
        add(target, "noise", "i8", symbols("i8", (9000, 800)))
        add(target, "small", "f32", symbols("f32", (3,)))
        target.add_asset("text", b"text " * 5000, "text/plain")
        target.commit()
    return path


@pytest.fixture
def server(served_bundle: Path) -> Iterator[RangeServer]:
    """Has the bundle at /x.tersor and `DATA` at /data."""
    with range_server({"/x.tersor": served_bundle.read_bytes(), "/data": DATA.tobytes()}) as server:
        yield server


@pytest.fixture(autouse=True)
def _every_plane_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small planes of these tests stand for large ones, which are aligned."""
    monkeypatch.setattr(limits, "MIN_ALIGNED_PLANE_BYTES", 0)
