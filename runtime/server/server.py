"""The server process: ports, services, life cycle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Final
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from prometheus_client import CollectorRegistry, start_http_server

from tersor.protos.inference import grpc_service_pb2, grpc_service_pb2_grpc
from tersor.protos.tersor.v1 import generation_pb2, generation_pb2_grpc
from tersor.runtime.config import ServerConfig
from tersor.runtime.metrics import Metrics
from tersor.runtime.server.addresses import address_error, bracketed, check_free
from tersor.runtime.server.admission import Admission
from tersor.runtime.server.bridge import EventBridge
from tersor.runtime.server.contracts import Host
from tersor.runtime.server.generation_service import GenerationService
from tersor.runtime.server.inference_models import DecoderInference, GraphInference
from tersor.runtime.server.inference_service import InferenceService
from tersor.runtime.server.interceptor import StatusInterceptor
from tersor.runtime.server.models import Models
from tersor.runtime.server.reflection import pool_of
from tersor.runtime.server.stream_session import SessionContext

Clock = Callable[[], float]
HostFactory = Callable[[ServerConfig, Metrics, Clock], Host]

SERVICES: Final = ("inference.GRPCInferenceService", "tersor.v1.Generation")
OVERALL: Final = ""  # the health of the process, as Kubernetes' gRPC probe asks for it
FLUSH_SECONDS: Final = 0.5  # after the drain: last bytes go out, idle streams and watchers end
MIN_PING_INTERVAL_MS: Final = 5_000  # clients may keep idle connections alive that often


def open_models(config: ServerConfig, metrics: Metrics, clock: Clock) -> Host:
    """The models of `config`, through residency and engines."""
    from tersor.runtime.host import ModelHost

    return ModelHost(config, metrics, clock=clock)


@dataclass(slots=True)
class _MetricsEndpoint:
    """The HTTP endpoint that Prometheus scrapes."""

    server: WSGIServer
    thread: Thread

    @property
    def port(self) -> int:
        return self.server.server_port

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Server:
    """gRPC on one port, metrics on another. Every method belongs to one event loop.

    Args:
        config: the whole process.
        registry: where the metrics go, and what the metrics port shows.
        clock: seconds; deadlines are on it.
        host_factory: opens the models.
        log: where internal errors go.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        registry: CollectorRegistry,
        clock: Clock = time.monotonic,
        host_factory: HostFactory = open_models,
        log: logging.Logger | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._host_factory = host_factory
        self._log = log or logging.getLogger("tersor.server")
        self._registry = registry
        self._metrics = Metrics(registry)
        self._models = Models()
        self._admission = Admission()
        self._health = health.aio.HealthServicer()
        self._host: Host | None = None
        self._grpc: grpc.aio.Server | None = None
        self._endpoint: _MetricsEndpoint | None = None
        self._grpc_port = 0

    @property
    def grpc_port(self) -> int:
        """The bound gRPC port, also when the configuration says 0."""
        return self._grpc_port

    @property
    def metrics_port(self) -> int:
        """The bound metrics port, also when the configuration says 0."""
        return self._endpoint.port if self._endpoint else 0

    @property
    def model_names(self) -> tuple[str, ...]:
        """What is served; empty until `start` returns."""
        return tuple(self._host.models) if self._host else ()

    async def start(self) -> None:
        """Binds both ports, then opens the models; returns once every service is SERVING.

        While the models open, the server answers: it is live, not ready, and refuses requests.

        Raises:
            AddressError: a port is in use or not ours to bind.
            BundleError, ModelError, ServingError: a model cannot be served; nothing stays bound.
        """
        try:
            await self._set_health(serving=False)
            self._grpc = self._grpc_server()
            self._grpc_port = self._bind(self._grpc)
            self._endpoint = self._metrics_endpoint()
            await self._grpc.start()
            self._host = await asyncio.to_thread(
                self._host_factory, self._config, self._metrics, self._clock
            )
            self._models.attach(self._host)
        except BaseException:
            await self._close(0.0)
            raise
        self._admission.open()
        await self._set_health(serving=True)

    async def drain_and_stop(self) -> None:
        """Says NOT_SERVING, refuses new requests, lets running ones end within the grace, stops."""
        await self._health.enter_graceful_shutdown()
        self._admission.refuse()
        start = self._clock()
        if not await self._admission.drain(self._config.drain_seconds):
            self._log.warning("%d requests cut off by the drain's end", self._admission.running)
        await self._close(max(0.0, self._config.drain_seconds - (self._clock() - start)))

    async def _close(self, drain_seconds: float) -> None:
        if self._grpc is not None:
            await self._grpc.stop(FLUSH_SECONDS)
        if self._host is not None:
            await asyncio.to_thread(self._host.close, drain_seconds)
        if self._endpoint is not None:
            await asyncio.to_thread(self._endpoint.close)

    async def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus.Value(
            "SERVING" if serving else "NOT_SERVING"
        )
        for service in (*SERVICES, OVERALL):
            await self._health.set(service, status)

    def _grpc_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[
                StatusInterceptor(SERVICES, self._metrics, self._clock, self._log),
            ],
            options=[
                ("grpc.so_reuseport", 0),  # else a second server shares the port without a word
                ("grpc.max_receive_message_length", self._config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
            ],
        )
        bridge = EventBridge(asyncio.get_running_loop())
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            self._inference_service(bridge), server
        )
        generation = GenerationService(
            models=self._models, admission=self._admission, bridge=bridge, clock=self._clock
        )
        generation_pb2_grpc.add_GenerationServicer_to_server(generation, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        files = (
            grpc_service_pb2.DESCRIPTOR,
            generation_pb2.DESCRIPTOR,
            health_pb2.DESCRIPTOR,
            reflection_pb2.DESCRIPTOR,
        )
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, pool_of(files))
        return server

    def _inference_service(self, bridge: EventBridge) -> InferenceService:
        return InferenceService(
            models=self._models,
            admission=self._admission,
            decoders=DecoderInference(bridge=bridge, clock=self._clock),
            graphs=GraphInference(clock=self._clock),
            session=SessionContext(
                admission=self._admission,
                metrics=self._metrics,
                clock=self._clock,
                log=self._log,
            ),
            clock=self._clock,
            batch_delay_seconds=self._config.engine.batch_delay_seconds,
        )

    def _bind(self, server: grpc.aio.Server) -> int:
        host, port = self._config.host, self._config.grpc_port
        check_free("gRPC", "--grpc-port", host, port)
        try:
            return server.add_insecure_port(f"{bracketed(host)}:{port}")
        except RuntimeError as error:
            raise address_error("gRPC", "--grpc-port", host, port, error) from error

    def _metrics_endpoint(self) -> _MetricsEndpoint:
        host, port = self._config.host, self._config.metrics_port
        try:
            server, thread = start_http_server(port, addr=host, registry=self._registry)
        except OSError as error:
            raise address_error("metrics", "--metrics-port", host, port, error) from error
        return _MetricsEndpoint(server, thread)
