"""Unmodified perf_analyzer, Triton's load generator, against both kinds of model.

It comes with tritonclient 2.41 and needs two libraries: Debian's package libb64-0d, and
libcudart.so.12 of the Python package nvidia-cuda-runtime-cu12 (no GPU is needed).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from running_server import RunningServer, free_ports, running_server

from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe

pytestmark = pytest.mark.conformance

PERF_ANALYZER = Path(sys.executable).parent / "perf_analyzer"
TOKENS = 8


def environment() -> dict[str, str]:
    """The process's environment with the folder of libcudart.so.12, wherever pip has put it."""
    folders = [os.environ.get("LD_LIBRARY_PATH", "")]
    try:
        spec = importlib.util.find_spec("nvidia.cuda_runtime")
    except ModuleNotFoundError:
        spec = None
    if spec is not None and spec.submodule_search_locations:
        folders += [f"{path}/lib" for path in spec.submodule_search_locations]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, folders))}


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, pico_dir: Path, minilm_dir: Path
) -> Iterator[RunningServer]:
    if not PERF_ANALYZER.exists():
        pytest.skip("perf_analyzer is not installed: it comes with tritonclient 2.41")
    version = subprocess.run(
        [PERF_ANALYZER, "--version"], env=environment(), capture_output=True, text=True, check=False
    )
    if version.returncode != 0:
        pytest.skip(f"perf_analyzer does not start: {(version.stderr or version.stdout).strip()}")
    folder = tmp_path_factory.mktemp("bundles")
    convert(pico_dir, folder / "pico.tersor", recipe=load_recipe("int8"))
    convert(minilm_dir, folder / "minilm.tersor", recipe=load_recipe("int8"))
    with running_server(free_ports(models=(folder,), preload=True)) as running:
        yield running


def tensor(shape: list[int], *content: object) -> dict[str, object]:
    return {"content": list(content), "shape": shape}


def analyze(
    served: RunningServer,
    folder: Path,
    model: str,
    inputs: Mapping[str, object],
    *arguments: str,
) -> str:
    """Output of one measurement that must end well."""
    data = folder / "data.json"
    data.write_text(json.dumps({"data": [inputs]}))
    run = subprocess.run(
        [
            PERF_ANALYZER, "-m", model, "-u", served.address, "-i", "grpc", "--input-data", data,
            "--measurement-mode", "count_windows", "--measurement-request-count", "20",
            "--max-trials", "3", "--stability-percentage", "999", *arguments,
        ],
        env=environment(), capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert "had error" not in output, output
    assert "Failed" not in output, output
    assert number(output, "Request count") > 0, output
    return output


def number(output: str, label: str) -> float:
    match = re.search(rf"{label}: ([\d.]+)", output)
    assert match is not None, output
    return float(match.group(1))


ONES = [1] * 16
TENSORS = {
    "input_ids": tensor([16], *range(1000, 1016)),
    "attention_mask": tensor([16], *ONES),
    "token_type_ids": tensor([16], *[0] * 16),
}
SHAPES = [item for name in TENSORS for item in ("--shape", f"{name}:16")]
VLLM = {
    "text_input": tensor([1], "def main():"),
    "stream": tensor([1], True),
    "exclude_input_in_output": tensor([1], True),
    "sampling_parameters": tensor(
        [1], json.dumps({"max_tokens": str(TOKENS), "min_tokens": str(TOKENS)})
    ),
}
TENSORRT_LLM = {
    "text_input": tensor([1], "def main():"),
    "stream": tensor([1], True),
    "max_tokens": tensor([1], TOKENS),
    "min_length": tensor([1], TOKENS),
}


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["unary", "streaming"])
def test_graph_with_text(served: RunningServer, tmp_path: Path, streaming: list[str]) -> None:
    inputs = {"text": tensor([1], "a stray cat slept")}
    analyze(served, tmp_path, "minilm", inputs, "--concurrency-range", "2", *streaming)


def test_graph_with_tensors_in_batches(served: RunningServer, tmp_path: Path) -> None:
    output = analyze(
        served, tmp_path, "minilm", TENSORS, "-b", "4", "--concurrency-range", "3", *SHAPES
    )
    assert "Batch size: 4" in output


@pytest.mark.parametrize("inputs", [VLLM, TENSORRT_LLM], ids=["vllm", "tensorrt-llm"])
def test_decoder_unary(served: RunningServer, tmp_path: Path, inputs: dict[str, object]) -> None:
    analyze(served, tmp_path, "pico", inputs, "--concurrency-range", "2")


@pytest.mark.parametrize("inputs", [VLLM, TENSORRT_LLM], ids=["vllm", "tensorrt-llm"])
def test_decoder_streaming(
    served: RunningServer, tmp_path: Path, inputs: dict[str, object]
) -> None:
    output = analyze(served, tmp_path, "pico", inputs, "--streaming", "--concurrency-range", "4")
    responses = number(output, "Response Throughput") / number(output, "\n    Throughput")
    assert responses > TOKENS / 2  # a response a token, fewer where a character needs several
