"""How patient an HTTP source is, and which way its requests take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Limits of one source's requests. Raises ValueError for a value out of range.

    The longest that one read can take follows from them: `max_attempts` requests, each ended when
    it is idle or slow, and the pauses between them.
    """

    connect_seconds: float = 10.0
    idle_seconds: float = 30.0  # without an answer, or without a byte of it
    # A body that is slower on average, counted from `idle_seconds` on, is given up: one byte before
    # every timeout would otherwise hold a load for years.
    min_bytes_per_second: int = 16 << 10
    max_attempts: int = 6  # requests for one read, the first included
    backoff_seconds: float = 0.25  # the longest pause after the first failure; doubles each time
    max_backoff_seconds: float = 8.0
    max_retry_after_seconds: float = 30.0  # a server that asks for more is asked again then
    max_redirects: int = 5
    max_connections: int = 8  # at once, to each host; kept alive between reads
    proxy: str | None = field(default=None, repr=False)  # an http URL; it may hold a password
    ca_file: Path | None = None  # PEM; trusted instead of the system's certificates

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "idle_seconds", "min_bytes_per_second"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, expected a finite number above 0")
        for name in ("backoff_seconds", "max_backoff_seconds", "max_retry_after_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}, expected a finite number, 0 or more")
        for name, low in (("max_attempts", 1), ("max_redirects", 0), ("max_connections", 1)):
            value = getattr(self, name)
            if value < low:
                raise ValueError(f"{name} is {value}, expected at least {low}")
