"""Reads the arguments of a container as the real `tersor serve` would."""

from __future__ import annotations

from dataclasses import dataclass

import typer
from typer.main import get_command

from tersor.cli.serve import serve
from tersor.runtime.config import parse_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments:
    """What a manifest asks the server for."""

    models: tuple[str, ...]
    device: str
    grpc_port: int
    metrics_port: int
    drain_seconds: float
    memory_budget_bytes: int
    kv_cache_bytes: int


def parse(arguments: list[str]) -> ServeArguments:
    """Raises typer's usage error for an option or a value that the command does not take."""
    assert arguments[0] == "serve", arguments
    app = typer.Typer()
    app.command("serve")(serve)
    context = get_command(app).make_context("tersor serve", arguments[1:])
    values = context.params
    return ServeArguments(
        models=tuple(str(path) for path in values["models"]),
        device=values["device"],
        grpc_port=values["grpc_port"],
        metrics_port=values["metrics_port"],
        drain_seconds=values["drain_seconds"],
        memory_budget_bytes=parse_bytes(values["memory_budget"]),
        kv_cache_bytes=parse_bytes(values["kv_cache"]),
    )
