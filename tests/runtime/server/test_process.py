"""The process: signals, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tersor.protos.tersor.v1 import generation_pb2, generation_pb2_grpc

SUPPORT = Path(__file__).resolve().parents[2] / "support"
SCRIPT = """
import sys
from fake_models import FakeHost
from tersor.runtime.config import ServerConfig
from tersor.runtime.server import serve

host = FakeHost()
host.decoder.engine.step_seconds = 0.02
config = ServerConfig(
    models=(), host="127.0.0.1", grpc_port=0, metrics_port=0, drain_seconds=float(sys.argv[1])
)
sys.exit(serve(config, started=lambda s: print(s.grpc_port, flush=True), host_factory=host.factory))
"""


@contextmanager
def process(drain_seconds: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serving process and its address."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(drain_seconds)],
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            yield running, f"127.0.0.1:{running.stdout.readline().strip()}"
        finally:
            running.kill()


def generate(
    address: str, tokens: int
) -> tuple[grpc.Channel, Iterator[generation_pb2.GenerateResponse]]:
    channel = grpc.insecure_channel(address)
    request = generation_pb2.GenerateRequest(
        model="counter", text="p", sampling=generation_pb2.SamplingParams(max_tokens=tokens)
    )
    call = generation_pb2_grpc.GenerationStub(channel).Generate(request)
    next(call)
    return channel, call


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_process_exits_with_0(number: signal.Signals) -> None:
    with process(10.0) as (running, address):
        channel, call = generate(address, tokens=20)
        running.send_signal(number)
        assert list(call)[-1].HasField("complete")
        channel.close()
        assert running.wait(20) == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""


def test_a_second_signal_ends_the_process_at_once() -> None:
    with process(60.0) as (running, address):
        channel, _ = generate(address, tokens=100_000)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert running.wait(5) == 128 + signal.SIGTERM
        channel.close()
