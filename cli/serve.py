"""`tersor serve`: the online journey as one process."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tersor.bundle.location import parse_location
from tersor.cli.options import ActivationsOption, DeviceOption, KVCacheDtypeOption
from tersor.runtime.config import EngineConfig, ServerConfig, parse_bytes

if TYPE_CHECKING:
    from tersor.runtime.server.server import Server


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE|FOLDER|URL", help="Bundles, folders of bundles, or URLs of bundles."
        ),
    ],
    *,
    device: DeviceOption = "cpu",
    activations: ActivationsOption = "auto",
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="Most memory for resident weights, e.g. 20GiB. "
            "Default: 80 % of the device's memory."
        ),
    ] = None,
    host_cache: Annotated[
        str, typer.Option(help="Host memory that keeps evicted weights compressed, e.g. 4GiB.")
    ] = "0",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104
    grpc_port: Annotated[int, typer.Option(help="0 picks a free port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Prometheus; 0 picks a free port.")] = 8002,
    max_batch_size: Annotated[
        int, typer.Option(help="Sequences decoded in one step; rows in one graph batch.")
    ] = 32,
    max_queue_size: Annotated[
        int, typer.Option(help="Waiting requests beyond which new ones are refused.")
    ] = 256,
    prefill_chunk_tokens: Annotated[
        int, typer.Option(help="A prompt is prefilled in pieces of this many tokens.")
    ] = 256,
    kv_cache: Annotated[
        str, typer.Option(help="Memory for keys and values of one decoder, e.g. 2GiB.")
    ] = "256MiB",
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    drain_seconds: Annotated[
        float, typer.Option(help="Grace for running requests after SIGTERM.")
    ] = 30.0,
    preload: Annotated[
        bool, typer.Option("--preload", help="Load all weights before reporting ready.")
    ] = False,
) -> None:
    """Serve bundles over gRPC.

    Prometheus metrics are on a second port, warnings and errors on stderr. There is no TLS and no
    authentication.

    Weights become resident when a request first needs them. SIGTERM drains: new requests are
    refused, running ones finish.
    """
    config = ServerConfig(
        models=tuple(map(parse_location, models)),
        device=device,
        activations=activations,  # type: ignore[arg-type]  # ServerConfig checks the choice
        memory_budget_bytes=(
            None if memory_budget is None else parse_bytes(memory_budget, key="--memory-budget")
        ),
        host_cache_bytes=parse_bytes(host_cache, key="--host-cache"),
        host=host,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        drain_seconds=drain_seconds,
        preload=preload,
        engine=EngineConfig(
            max_batch_size=max_batch_size,
            max_queue_size=max_queue_size,
            prefill_chunk_tokens=prefill_chunk_tokens,
            kv_cache_bytes=parse_bytes(kv_cache, key="--kv-cache"),
            kv_cache_dtype=kv_cache_dtype,  # type: ignore[arg-type]  # EngineConfig checks the choice
        ),
    )
    from tersor.runtime.server.app import serve as run

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(run(config, started=_announce))


def _announce(server: Server) -> None:
    """One line on stderr once every service answers; with port 0 the only place to learn it."""
    names = ", ".join(server.model_names)
    sys.stderr.write(
        f"serving {names}: gRPC on port {server.grpc_port}, "
        f"metrics on http://localhost:{server.metrics_port}/metrics\n"
    )
