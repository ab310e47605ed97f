from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tersor.runtime.config import EngineConfig, ServerConfig, format_bytes, parse_bytes
from tersor.runtime.errors import ConfigError

MODELS = (Path("a.tersor"),)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("20GiB", 20 << 30),
        ("512 MiB", 512 << 20),
        ("1.5gb", 1_500_000_000),
        (" 64kb ", 64_000),
        ("3 TiB", 3 << 40),
        ("7B", 7),
        ("0", 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "10 GiBs", "1.2.3MB", "ten", "1,5GB"])
def test_other_sizes_are_refused_by_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--memory-budget: got .* for example 20GiB"):
        parse_bytes(text, key="--memory-budget")


def test_sizes_are_written_in_binary_units() -> None:
    sizes = {0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 20 << 30: "20.0 GiB", 3 << 40: "3.0 TiB"}
    assert {count: format_bytes(count) for count in sizes} == sizes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_batch_size", 0),
        ("max_batch_size", True),
        ("max_queue_size", -1),
        ("prefill_chunk_tokens", 0),
        ("kv_page_tokens", 2.5),
        ("kv_cache_bytes", 0),
        ("kv_cache_dtype", "fp8"),
        ("batch_delay_seconds", -0.1),
        ("batch_delay_seconds", float("nan")),
    ],
)
def test_engine_limits_are_checked(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got {value!r}, expected"):
        EngineConfig(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("activations", "fp16"),
        ("memory_budget_bytes", 0),
        ("host_cache_bytes", -1),
        ("prefetch_groups", -1),
        ("grpc_port", 65536),
        ("metrics_port", -1),
        ("metrics_port", 8001),
        ("max_message_bytes", 0),
        ("drain_seconds", float("inf")),
    ],
)
def test_the_process_configuration_is_checked(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got {value!r}, expected"):
        ServerConfig(models=MODELS, **{key: value})


def test_defaults_and_free_ports_are_valid() -> None:
    config = ServerConfig(models=MODELS, grpc_port=0, metrics_port=0, device="cuda:1")
    assert config.memory_budget_bytes is None
    assert isinstance(ConfigError("x"), ValueError)
