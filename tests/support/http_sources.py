"""HTTP sources that do not really wait, and what they read in tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from range_server import (
    RangeServer,
    answers,
)
from tiny_bundles import noise

from tersor.bundle.sources.http import HttpSource
from tersor.bundle.sources.http_settings import HttpSettings

DATA = noise(3 << 20)


class Sleeps:
    """Instead of sleeping: how long it would have taken, in all and since the last look."""

    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self, seconds: float) -> None:
        self.total += seconds

    def take(self) -> float:
        """The seconds since the last look."""
        total, self.total = self.total, 0.0
        return total


def source(server: RangeServer, path: str = "/data", **settings: Any) -> HttpSource:
    """A source that does not really wait."""
    return HttpSource(server.url(path), HttpSettings(**settings), sleep=lambda _: None)


def read(source: HttpSource, offset: int, size: int) -> np.ndarray[Any, Any]:
    with source.using():
        return source.load(offset, size)


def redirect(server: RangeServer, *locations: str, status: int = 302) -> None:
    """Puts redirects before the next answers."""
    server.faults.extend(answers(status, Location=location) for location in locations)
