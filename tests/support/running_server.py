"""A real server on free ports, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from prometheus_client import CollectorRegistry

from tersor.protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tersor.protos.tersor.v1.generation_pb2_grpc import GenerationStub
from tersor.runtime.config import ServerConfig
from tersor.runtime.server import Server
from tersor.runtime.server.server import HostFactory, open_models


def free_ports(**changes: object) -> ServerConfig:
    """A configuration on loopback with free ports."""
    settings: dict[str, object] = {
        "models": (), "host": "127.0.0.1", "grpc_port": 0, "metrics_port": 0, "drain_seconds": 5.0,
    }  # fmt: skip
    return ServerConfig(**(settings | changes))  # type: ignore[arg-type]  # checked by ServerConfig


@dataclass
class RunningServer:
    """What tests talk to."""

    server: Server
    loop: asyncio.AbstractEventLoop
    registry: CollectorRegistry
    address: str
    channel: grpc.Channel
    inference: GRPCInferenceServiceStub = field(init=False)
    generation: GenerationStub = field(init=False)

    def __post_init__(self) -> None:
        self.inference = GRPCInferenceServiceStub(self.channel)
        self.generation = GenerationStub(self.channel)

    def drain(self) -> None:
        """Drains and stops; returns when the server has ended."""
        asyncio.run_coroutine_threadsafe(self.server.drain_and_stop(), self.loop).result()

    def sample(self, name: str, **labels: str) -> float:
        """Value of one metric series; 0 if it does not exist yet."""
        return self.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def running_server(
    config: ServerConfig, host_factory: HostFactory = open_models
) -> Iterator[RunningServer]:
    """Starts a server; stops it at the end unless the test has drained it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(_await(work), loop).result()

    registry = CollectorRegistry()
    server = Server(config, registry=registry, host_factory=host_factory)
    try:
        run(server.start)
        address = f"127.0.0.1:{server.grpc_port}"
        with grpc.insecure_channel(address) as channel:
            yield RunningServer(server, loop, registry, address, channel)
    finally:
        run(server.drain_and_stop)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _await(work: Callable[[], object]) -> None:
    result = work()
    if asyncio.iscoroutine(result):
        await result
