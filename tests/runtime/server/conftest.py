"""One server over fake models for each test file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_models import FakeDecoderEngine, FakeGraphEngine, FakeHost
from running_server import RunningServer, free_ports, running_server


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
