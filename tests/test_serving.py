"""The promise to many clients at once: nobody's text depends on who else is being served."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from running_server import RunningServer, free_ports, running_server

from tersor.converters.pipeline import convert
from tersor.converters.recipe import load_recipe
from tersor.protos.tersor.v1.generation_pb2 import GenerateRequest, SamplingParams

STREAMS = 32
DEADLINE_SECONDS = 1.0  # long enough to be admitted, far too short for 400 tokens
# Refused at once if the queue's estimate is past the deadline, ended within a step otherwise.
LATE = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


@dataclass(frozen=True)
class Case:
    """One client: what it asks, and whether it goes away or runs out of time."""

    request: GenerateRequest
    fate: str  # "survives", "cancels" or "expires"


@pytest.fixture(scope="module", params=["lossless", "int8", "int4"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pico_dir: Path
) -> Iterator[RunningServer]:
    bundle = tmp_path_factory.mktemp("serving") / "pico.tersor"
    convert(pico_dir, bundle, recipe=load_recipe(request.param))
    with running_server(free_ports(models=(bundle,), activations="fp32")) as running:
        yield running


def cases(text: str) -> list[Case]:
    """Prompts of 10 to 600 characters, continuations of 8 to 39 tokens, half of them sampled."""
    result = []
    for index in range(STREAMS):
        start = 7919 * index % (len(text) - 1000)
        sampling = SamplingParams(max_tokens=8 + index, ignore_eos=True)
        if index % 2:
            sampling.temperature = 0.8
            sampling.top_p = 0.9
            sampling.seed = index
        fate = "cancels" if index % 3 == 1 else "expires" if index % 11 == 6 else "survives"
        if fate != "survives":
            sampling.max_tokens = 400
        prompt = text[start : start + 10 + 19 * index]
        result.append(Case(GenerateRequest(model="pico", text=prompt, sampling=sampling), fate))
    return result


def whole_text(server: RunningServer, request: GenerateRequest) -> str:
    return "".join(answer.chunk.text for answer in server.generation.Generate(request))


def play(server: RunningServer, case: Case, start: threading.Barrier) -> str | grpc.StatusCode:
    """The text of a survivor, the status of the others."""
    start.wait(timeout=60)
    if case.fate == "survives":
        return whole_text(server, case.request)
    timeout = DEADLINE_SECONDS if case.fate == "expires" else None
    stream = server.generation.Generate(case.request, timeout=timeout)
    try:
        for _ in stream:
            if case.fate == "cancels":
                stream.cancel()
    except grpc.RpcError as error:
        return error.code()
    raise AssertionError(f"a stream that {case.fate} came to its end")


def test_survivors_get_the_text_they_would_get_alone(
    server: RunningServer, heldout_text: str
) -> None:
    todo = cases(heldout_text)
    alone = [whole_text(server, case.request) if case.fate == "survives" else "" for case in todo]
    start = threading.Barrier(STREAMS)
    with ThreadPoolExecutor(STREAMS) as pool:
        outcomes = list(pool.map(lambda case: play(server, case, start), todo))
    for case, text, outcome in zip(todo, alone, outcomes, strict=True):
        match case.fate:
            case "survives":
                assert outcome == text
            case "cancels":
                assert outcome == grpc.StatusCode.CANCELLED
            case "expires":
                assert outcome in LATE
    assert sum(case.fate == "survives" for case in todo) >= STREAMS // 2
    wait_until_idle(server)


def wait_until_idle(server: RunningServer) -> None:
    """KV pages return to zero within a step of the last cancellation."""
    give_up = time.monotonic() + 30
    while (pages := server.sample("tersor_kv_pages_used", model="pico")) != 0:
        assert time.monotonic() < give_up, f"{pages} KV pages are still in use"
        time.sleep(0.02)
