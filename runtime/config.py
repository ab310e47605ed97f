"""Configuration of one serving process: built once by the command, passed down, never changed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from tersor.bundle.location import Location
from tersor.runtime.errors import ConfigError

Activations = Literal["auto", "bf16", "fp32"]
KVCacheDtype = Literal["auto", "bf16", "fp32", "int8"]

SIZE_UNITS: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_MAX_PORT: Final = 65535


def parse_bytes(text: str, *, key: str = "size") -> int:
    """Bytes in a size as people write it: "20GiB" is 20·2³⁰, "1.5 GB" is 1.5·10⁹, "4096" is bytes.

    Raises:
        ConfigError: not a number, an unknown unit, or nothing at all; `key` names the value.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = match.group(2).lower() if match else ""
    if match is None or unit not in SIZE_UNITS:
        raise ConfigError(
            f"{key}: got {text!r}, expected a number with an optional unit "
            "(B, KB, MB, GB, TB, KiB, MiB, GiB, TiB), for example 20GiB"
        )
    return int(float(match.group(1)) * SIZE_UNITS[unit])


def format_bytes(count: int) -> str:
    """A size for people, in binary units: 1536 is "1.5 KiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _whole(key: str, value: object, *, low: int, high: int | None = None) -> None:
    """Raises ConfigError unless `value` is an integer within the bounds."""
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if good and isinstance(value, int) and (high is None or value <= high):
        return
    allowed = f"an integer of at least {low}" if high is None else f"an integer {low} to {high}"
    raise ConfigError(f"{key}: got {value!r}, expected {allowed}")


def _choice(key: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{key}: got {value!r}, expected one of {', '.join(allowed)}")


def _seconds(key: str, value: object) -> None:
    """Raises ConfigError unless `value` is a finite time, 0 or more."""
    if isinstance(value, (int, float)) and math.isfinite(value) and value >= 0:
        return
    raise ConfigError(f"{key}: got {value!r}, expected a finite number of seconds, 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Scheduling limits of one model's engine. Raises ConfigError for a value out of range."""

    max_batch_size: int = 32  # sequences decoded in one step; rows in one graph batch
    max_queue_size: int = 256  # waiting requests beyond which RESOURCE_EXHAUSTED is answered
    prefill_chunk_tokens: int = 256  # a prompt is prefilled in pieces of this many tokens
    kv_page_tokens: int = 16
    kv_cache_bytes: int = 256 << 20  # device memory for keys and values
    kv_cache_dtype: KVCacheDtype = "auto"  # of keys and values; auto: as the activations
    batch_delay_seconds: float = 0.002  # how long a graph batch waits for company

    def __post_init__(self) -> None:
        _whole("max_batch_size", self.max_batch_size, low=1)
        _whole("max_queue_size", self.max_queue_size, low=1)
        _whole("prefill_chunk_tokens", self.prefill_chunk_tokens, low=1)
        _whole("kv_page_tokens", self.kv_page_tokens, low=1)
        _whole("kv_cache_bytes", self.kv_cache_bytes, low=1)
        _choice("kv_cache_dtype", self.kv_cache_dtype, get_args(KVCacheDtype))
        _seconds("batch_delay_seconds", self.batch_delay_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The whole process. Raises ConfigError for a value out of range."""

    models: tuple[Location, ...]  # bundles, folders of bundles, URLs of bundles
    device: str = "cpu"
    activations: Activations = "auto"
    # Resident weights over all models; None: 80 % of the memory that the device has.
    memory_budget_bytes: int | None = None
    host_cache_bytes: int = 0  # compressed groups kept in host memory for a fast return; 0: none
    prefetch_groups: int = 2  # how many groups a load runs ahead of the computation; 0: none
    host: str = "0.0.0.0"  # noqa: S104 - a server in a container listens on every interface
    grpc_port: int = 8001  # 0 picks a free port
    metrics_port: int = 8002  # 0 picks a free port
    max_message_bytes: int = 64 << 20
    drain_seconds: float = 30.0  # grace for running requests after SIGTERM
    preload: bool = False  # load every model's weights before reporting ready
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if _DEVICE.fullmatch(self.device) is None:
            raise ConfigError(f"device: got {self.device!r}, expected cpu, cuda or cuda:<index>")
        _choice("activations", self.activations, get_args(Activations))
        if self.memory_budget_bytes is not None:
            _whole("memory_budget_bytes", self.memory_budget_bytes, low=1)
        _whole("host_cache_bytes", self.host_cache_bytes, low=0)
        _whole("prefetch_groups", self.prefetch_groups, low=0)
        _whole("grpc_port", self.grpc_port, low=0, high=_MAX_PORT)
        _whole("metrics_port", self.metrics_port, low=0, high=_MAX_PORT)
        if self.grpc_port == self.metrics_port and self.grpc_port != 0:
            raise ConfigError(
                f"metrics_port: got {self.metrics_port}, expected another port than grpc_port"
            )
        _whole("max_message_bytes", self.max_message_bytes, low=1)
        _seconds("drain_seconds", self.drain_seconds)
