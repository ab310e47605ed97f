"""MLServer as a peer of `server_overhead.py`: started only where an interpreter has it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tersor.protos.inference import grpc_service_pb2 as inference
from tersor.protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub

START_SECONDS = 90


@contextmanager
def mlserver(python: str, bundles: Path, work: Path) -> Iterator[str]:
    """MLServer over the graph `minilm`, without worker processes; gives its gRPC address.

    Args:
        python: an interpreter that has mlserver, torch and tersor.
        bundles: the folder with `minilm.tersor`.
        work: where its configuration goes.
    """
    folder = work / "mlserver"
    folder.mkdir()
    http, port, metrics = _free_ports(3)
    ports = {"http_port": http, "grpc_port": port, "metrics_port": metrics}
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    model = {
        "name": "minilm",
        "implementation": "mlserver_runtime.GraphRuntime",
        "parameters": {"uri": str(bundles / "minilm.tersor")},
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    log = (folder / "log").open("w+", encoding="utf-8")
    command = [python, "-c", "from mlserver.cli import main; main()", "start", str(folder)]
    with log, subprocess.Popen(command, stdout=log, stderr=log, env=env) as process:
        try:
            address = f"127.0.0.1:{port}"
            if not _ready(process, address):
                log.seek(0)
                raise RuntimeError(f"MLServer did not start:\n{log.read()}")
            yield address
        finally:
            process.terminate()


def _ready(process: subprocess.Popen[bytes], address: str) -> bool:
    end = time.monotonic() + START_SECONDS
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        while time.monotonic() < end and process.poll() is None:
            try:
                if stub.ModelReady(inference.ModelReadyRequest(name="minilm"), timeout=2).ready:
                    return True
            except grpc.RpcError:
                time.sleep(0.3)
    return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
