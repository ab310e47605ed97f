"""Runs one server until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry

from tersor.runtime.config import ServerConfig
from tersor.runtime.server.server import HostFactory, Server, open_models

__all__ = ["Server", "serve"]

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def serve(
    config: ServerConfig,
    *,
    registry: CollectorRegistry | None = None,
    started: Callable[[Server], None] | None = None,
    host_factory: HostFactory = open_models,
) -> int:
    """Serves until SIGTERM or SIGINT, drains, and returns the exit code 0.

    A second signal ends the process at once, with 128 + its number.

    Args:
        config: the whole process.
        registry: for the metrics; a new one if None.
        started: called once every service is SERVING, for example to print the ports.
        host_factory: opens the models.

    Raises:
        AddressError: a port is in use or not ours to bind.
        BundleError, ModelError, ServingError: a model cannot be served.
    """
    server = Server(config, registry=registry or CollectorRegistry(), host_factory=host_factory)
    return asyncio.run(_serve(server, started))


async def _serve(server: Server, started: Callable[[Server], None] | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, _on_signal, stop, number)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    await starting  # a signal during the start waits for it, so that nothing is left half open
    _freeze()
    if started is not None and not stop.is_set():
        started(server)
    await stopping
    await server.drain_and_stop()
    return 0


def _freeze() -> None:
    """Takes what the start made, torch's modules above all, out of the garbage collector's rounds.

    A full round over them stops every thread for more than 100 ms.
    """
    gc.collect()
    gc.freeze()


def _on_signal(stop: asyncio.Event, number: signal.Signals) -> None:
    if stop.is_set():
        os._exit(128 + number)
    stop.set()
