"""Servers over fake and over real models, one for each test file that wants one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_models import FakeDecoderEngine, FakeGraphEngine, FakeHost
from running_server import RunningServer, free_ports, running_server

from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe


@pytest.fixture(scope="module")
def host() -> FakeHost:
    """The fake models behind `served`."""
    return FakeHost()


@pytest.fixture(scope="module")
def served(host: FakeHost) -> Iterator[RunningServer]:
    """A running server over `host`."""
    with running_server(free_ports(max_message_bytes=1 << 20), host.factory) as running:
        yield running


@pytest.fixture
def decoder(host: FakeHost) -> FakeDecoderEngine:
    """The fake decoder's engine, with a clean slate."""
    host.decoder.engine = FakeDecoderEngine()
    return host.decoder.engine


@pytest.fixture
def graph(host: FakeHost) -> FakeGraphEngine:
    """The fake graph's engine, with a clean slate."""
    host.graph.engine = FakeGraphEngine()
    return host.graph.engine


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, pico_dir: Path, minilm_dir: Path) -> Path:
    """A folder with pico, a language model, and MiniLM, a sentence encoder."""
    folder = tmp_path_factory.mktemp("bundles")
    convert(pico_dir, folder / "pico.tersor", recipe=load_recipe("int8"))
    convert(minilm_dir, folder / "minilm.tersor", recipe=load_recipe("int8"))
    return folder


@pytest.fixture(scope="module")
def real(bundles: Path) -> Iterator[RunningServer]:
    """A running server over `bundles`."""
    with running_server(free_ports(models=(bundles,))) as running:
        yield running
