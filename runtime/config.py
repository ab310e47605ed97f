"""Configuration of one serving process: built once by the command, passed down, never changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Activations = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Scheduling limits of one model's engine."""

    max_batch_size: int = 32  # sequences decoded in one step; requests in one graph batch
    max_queue_size: int = 256  # waiting requests beyond which RESOURCE_EXHAUSTED is answered
    prefill_chunk_tokens: int = 256  # a prompt is prefilled in pieces of this many tokens
    kv_page_tokens: int = 16
    kv_cache_bytes: int = 256 << 20  # device memory for keys and values
    batch_delay_seconds: float = 0.002  # how long a graph batch waits for company


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The whole process."""

    models: tuple[Path, ...]  # bundles, or folders of bundles
    device: str = "cpu"
    activations: Activations = "auto"
    memory_budget_bytes: int | None = None  # resident weights over all models; None: no limit
    host: str = "0.0.0.0"  # noqa: S104 - a server in a container listens on every interface
    grpc_port: int = 8001  # 0 picks a free port
    metrics_port: int = 8002  # 0 picks a free port
    max_message_bytes: int = 64 << 20
    drain_seconds: float = 30.0  # grace for running requests after SIGTERM
    preload: bool = False  # load every model's weights before reporting ready
    engine: EngineConfig = field(default_factory=EngineConfig)
