"""Ports, health, reflection, metadata, drain."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from fake_models import FakeDecoderEngine, FakeHost
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from oip import infer_request
from prometheus_client import CollectorRegistry
from running_server import RunningServer, free_ports, running_server

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.protos.tersor.v1 import generation_pb2
from tersor.runtime.config import ServerConfig
from tersor.runtime.errors import ModelLoadError
from tersor.runtime.metrics import Metrics
from tersor.runtime.server import AddressError, Server
from tersor.runtime.server.server import SERVICES

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health_stub(channel: grpc.Channel) -> Any:  # Any: the stub's own types leave its methods out
    return health_pb2_grpc.HealthStub(channel)


def health(served: RunningServer, service: str) -> int:
    stub = health_stub(served.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service)).status)


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_every_service_is_healthy(served: RunningServer, service: str) -> None:
    assert health(served, service) == SERVING


def test_an_unknown_service_has_no_health(served: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as error:
        health(served, "tersor.v2.Generation")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_describes_both_protocols(served: RunningServer) -> None:
    database = ProtoReflectionDescriptorDatabase(served.channel)
    assert set(SERVICES) < set(database.get_services())
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    assert {method.name for method in service.methods} == {
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig",
        "ModelInfer", "ModelStreamInfer",
    }  # fmt: skip
    message = pool.FindMessageTypeByName("tersor.v1.SamplingParams")
    assert message.fields_by_name["temperature"].has_presence


def test_live_ready_and_metadata(served: RunningServer, host: FakeHost) -> None:
    assert served.inference.ServerLive(pb.ServerLiveRequest()).live
    assert served.inference.ServerReady(pb.ServerReadyRequest()).ready
    assert served.inference.ModelReady(pb.ModelReadyRequest(name="counter")).ready
    server = served.inference.ServerMetadata(pb.ServerMetadataRequest())
    assert server.name == "tersor"
    assert "statistics" not in server.extensions
    host.graph.ready = False
    try:
        assert not served.inference.ServerReady(pb.ServerReadyRequest()).ready
        assert not served.inference.ModelReady(pb.ModelReadyRequest(name="doubler")).ready
    finally:
        host.graph.ready = True
    with pytest.raises(grpc.RpcError) as error:
        served.inference.ModelReady(pb.ModelReadyRequest(name="nobody"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_decoder_metadata_and_config(served: RunningServer) -> None:
    metadata = served.inference.ModelMetadata(pb.ModelMetadataRequest(name="counter"))
    assert (metadata.platform, list(metadata.versions)) == ("tersor_decoder", ["1"])
    assert metadata.properties["certificate.kl_divergence"] == "0.5"
    assert "certificate.note" not in metadata.properties
    types = {tensor.name: tensor.datatype for tensor in metadata.inputs}
    assert (types["text_input"], types["stream"], types["seed"]) == ("BYTES", "BOOL", "UINT64")
    config = served.inference.ModelConfig(pb.ModelConfigRequest(name="counter")).config
    assert config.model_transaction_policy.decoupled
    assert config.max_batch_size == 0
    assert [tensor.name for tensor in config.input if not tensor.optional] == ["text_input"]
    assert {tensor.name for tensor in config.input} == set(types)


def test_graph_metadata_and_config(served: RunningServer) -> None:
    metadata = served.inference.ModelMetadata(pb.ModelMetadataRequest(name="doubler"))
    shapes = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs}
    assert shapes == {"x": ("FP32", [-1, 3]), "mask": ("INT8", [-1, 3]), "text": ("BYTES", [-1, 1])}
    config = served.inference.ModelConfig(pb.ModelConfigRequest(name="doubler")).config
    assert config.max_batch_size == 4
    assert not config.model_transaction_policy.decoupled
    assert [list(tensor.dims) for tensor in config.input] == [[3], [3], [1]]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.output[2].data_type == pb.TYPE_BF16


def test_a_method_that_is_not_served_is_unimplemented(served: RunningServer) -> None:
    call: Any = served.channel.unary_unary("/inference.GRPCInferenceService/RepositoryIndex")
    with pytest.raises(grpc.RpcError) as error:
        call(b"")
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_a_message_that_does_not_parse_is_refused(
    served: RunningServer, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"/inference.GRPCInferenceService/{method}"
    call: Any = served.channel.stream_stream(
        path
    )  # a unary method reads the one message of a stream
    with pytest.raises(grpc.RpcError, match="3 bytes do not parse") as error:
        list(call(iter([b"\xff\xff\xff"])))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caplog.text == ""
    assert served.inference.ServerLive(pb.ServerLiveRequest()).live


def test_the_metrics_endpoint(served: RunningServer) -> None:
    served.inference.ServerLive(pb.ServerLiveRequest())
    url = f"http://127.0.0.1:{served.server.metrics_port}/metrics"
    with urllib.request.urlopen(url) as response:
        text = response.read().decode()
    assert 'tersor_requests_total{method="ServerLive",model="",status="OK"}' in text


def start_and_fail(config: ServerConfig, expected: type[Exception], match: str) -> None:
    async def main() -> None:
        server = Server(config, registry=CollectorRegistry(), host_factory=FakeHost().factory)
        with pytest.raises(expected, match=match):
            await server.start()

    asyncio.run(main())


def test_a_used_port_is_one_clear_error(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = rf"gRPC on 127\.0\.0\.1:{port}: the port is in use.*--grpc-port"
        start_and_fail(free_ports(grpc_port=port), AddressError, message)
        message = rf"metrics on 127\.0\.0\.1:{port}: the port is in use.*--metrics-port"
        start_and_fail(free_ports(metrics_port=port), AddressError, message)
    assert capfd.readouterr().err == ""  # gRPC has nothing to say of its own


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    start_and_fail(free_ports(host=host), AddressError, rf"gRPC on {host}:0: .*--host")
    assert capfd.readouterr().err == ""


def test_a_second_server_cannot_share_the_port(served: RunningServer) -> None:
    start_and_fail(free_ports(grpc_port=served.server.grpc_port), AddressError, "in use")


def test_a_model_that_cannot_be_served_releases_the_ports() -> None:
    def fail(*_: object) -> FakeHost:
        raise ModelLoadError("the bundle is damaged")

    async def main() -> tuple[int, int]:
        server = Server(free_ports(), registry=CollectorRegistry(), host_factory=fail)
        with pytest.raises(ModelLoadError, match="damaged"):
            await server.start()
        return server.grpc_port, server.metrics_port

    for port in asyncio.run(main()):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


def test_while_models_open_the_server_is_live_but_not_ready() -> None:
    host, opening, may_open = FakeHost(), threading.Event(), threading.Event()
    ports: list[int] = []

    def slow(config: ServerConfig, metrics: Metrics, clock: object) -> FakeHost:
        opening.set()
        may_open.wait()
        return host

    async def main() -> None:
        server = Server(free_ports(), registry=CollectorRegistry(), host_factory=slow)
        starting = asyncio.create_task(server.start())
        await asyncio.to_thread(opening.wait)
        ports.append(server.grpc_port)
        try:
            await asyncio.to_thread(check, server.grpc_port)
        finally:
            may_open.set()
            await starting
            await server.drain_and_stop()

    def check(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_stub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            with pytest.raises(grpc.RpcError, match="starting") as error:
                call(infer_request("counter", {"text_input": "p"}))
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())
    assert host.closed_with is not None


def slow_generation(
    served: RunningServer, host: FakeHost, tokens: int
) -> Iterator[generation_pb2.GenerateResponse]:
    host.decoder.engine.step_seconds = 0.02
    request = generation_pb2.GenerateRequest(
        model="counter", text="p", sampling=generation_pb2.SamplingParams(max_tokens=tokens)
    )
    call = served.generation.Generate(request)
    next(call)
    return call


def test_drain_finishes_what_runs_and_refuses_what_comes() -> None:
    host = FakeHost()
    with running_server(free_ports(drain_seconds=10.0), host.factory) as served:
        call = slow_generation(served, host, tokens=40)
        watch = health_stub(served.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        start = time.monotonic()
        draining = threading.Thread(target=served.drain)
        draining.start()
        assert next(watch).status == NOT_SERVING
        assert not served.inference.ServerReady(pb.ServerReadyRequest()).ready
        with pytest.raises(grpc.RpcError, match="shutting down") as error:
            served.inference.ModelInfer(infer_request("counter", {"text_input": "p"}))
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        responses = list(call)
        assert responses[-1].complete.usage.completion_tokens == 40
        draining.join()
        assert 0.5 < time.monotonic() - start < 5  # neither cut off nor held by the watcher
        assert host.closed_with is not None


def test_drain_cuts_off_what_outlives_the_grace() -> None:
    host = FakeHost()
    with running_server(free_ports(drain_seconds=0.2), host.factory) as served:
        call = slow_generation(served, host, tokens=10_000)
        start = time.monotonic()
        served.drain()
        assert time.monotonic() - start < 5
        with pytest.raises(grpc.RpcError):
            list(call)
        engine: FakeDecoderEngine = host.decoder.engine
        assert engine.handles[0].cancelled.is_set()


def test_an_idle_stream_does_not_hold_the_drain() -> None:
    host = FakeHost()
    with running_server(free_ports(drain_seconds=10.0), host.factory) as served:
        closed = threading.Event()

        def nothing() -> Iterator[pb.ModelInferRequest]:
            closed.wait(30)
            yield from ()

        stream = served.inference.ModelStreamInfer(nothing())
        start = time.monotonic()
        served.drain()
        assert time.monotonic() - start < 5
        closed.set()
        with pytest.raises(grpc.RpcError):
            list(stream)
