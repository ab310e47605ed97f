"""Unmodified tritonclient.grpc on both models: unary, streaming, multiplexed, cancelled."""

from __future__ import annotations

import asyncio
import json
import queue
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from fake_models import FakeDecoderEngine, FakeGraphEngine
from running_server import RunningServer
from tritonclient.utils import InferenceServerException


@pytest.fixture
def client(served: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.address) as client:
        yield client


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def prompt(text: str, *, stream: bool = False, **sampling: str) -> list[triton.InferInput]:
    return [
        tensor("text_input", np.array([text.encode()], dtype=np.object_), "BYTES"),
        tensor("stream", np.array([stream]), "BOOL"),
        tensor(
            "sampling_parameters",
            np.array([json.dumps(sampling).encode()], dtype=np.object_),
            "BYTES",
        ),
    ]


def test_questions_about_server_and_models(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("counter")
    assert client.is_model_ready("doubler", "1")
    assert client.get_server_metadata(as_json=True)["name"] == "tersor"
    assert client.get_model_metadata("doubler").inputs[0].name == "x"
    assert client.get_model_config("counter").config.model_transaction_policy.decoupled
    with pytest.raises(InferenceServerException) as error:
        client.get_model_repository_index()
    assert error.value.status() == "StatusCode.UNIMPLEMENTED"


def test_unary_text(client: triton.InferenceServerClient, decoder: FakeDecoderEngine) -> None:
    result = client.infer(
        "counter", prompt("p:", max_tokens="3"), request_id="7", client_timeout=10,
        outputs=[triton.InferRequestedOutput("text_output")],
    )  # fmt: skip
    assert result.as_numpy("text_output").tolist() == [b"p:0 1 2 "]
    assert result.get_response().id == "7"


def test_request_parameters(
    client: triton.InferenceServerClient, decoder: FakeDecoderEngine
) -> None:
    parameters = {"max_tokens": 2, "temperature": "0.5", "exclude_input_in_output": True}
    inputs = prompt("p")[:1]
    result = client.infer("counter", inputs, parameters=parameters, timeout=5_000_000, priority=1)
    assert result.as_numpy("text_output").tolist() == [b"0 1 "]
    assert decoder.requests[-1].sampling.temperature == 0.5
    assert decoder.requests[-1].deadline is not None


def test_unary_graph(client: triton.InferenceServerClient, graph: FakeGraphEngine) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    inputs = [
        tensor("x", x, "FP32"),
        tensor("mask", np.ones((2, 3), dtype=np.int8), "INT8"),
    ]
    result = client.infer("doubler", inputs)
    assert result.as_numpy("doubled").tolist() == (x * 2).tolist()
    assert result.as_numpy("kept").all()
    assert result.as_numpy("rounded").tolist() == x.tolist()
    text = tensor("text", np.array([b"ab"], dtype=np.object_), "BYTES")
    assert client.infer("doubler", [text]).as_numpy("doubled").tolist() == [[4.0] * 3]


def test_errors_carry_status_and_message(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="'nobody'") as error:
        client.infer("nobody", prompt("p"))
    assert error.value.status() == "StatusCode.NOT_FOUND"
    wrong = tensor("x", np.zeros((1, 2), dtype=np.float32), "FP32")
    with pytest.raises(InferenceServerException, match="'mask' is missing") as error:
        client.infer("doubler", [wrong])
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_streams_are_multiplexed(
    client: triton.InferenceServerClient, decoder: FakeDecoderEngine, graph: FakeGraphEngine
) -> None:
    decoder.step_seconds = 0.005
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for index in range(6):
        client.async_stream_infer(
            "counter", prompt("p", stream=True, max_tokens=str(3 + index)), request_id=str(index),
            enable_empty_final_response=True,
        )  # fmt: skip
    text = tensor("text", np.array([b"ab"], dtype=np.object_), "BYTES")
    client.async_stream_infer("doubler", [text], request_id="graph")
    texts: dict[str, str] = defaultdict(str)
    open_requests = {*map(str, range(6)), "graph"}
    while open_requests:
        result, error = answers.get(timeout=10)
        assert error is None
        response = result.get_response()
        if response.id == "graph":
            assert result.as_numpy("doubled").tolist() == [[4.0] * 3]
        else:
            texts[response.id] += result.as_numpy("text_output")[0].decode()
        if response.parameters["triton_final_response"].bool_param:
            open_requests.remove(response.id)
    client.stop_stream()
    for index in range(6):
        assert texts[str(index)] == "".join(f"{i} " for i in range(3 + index))


def test_an_error_in_a_stream_leaves_it_open(
    client: triton.InferenceServerClient, decoder: FakeDecoderEngine
) -> None:
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("nobody", prompt("p"))
    assert "'nobody'" in str(answers.get(timeout=10)[1])
    client.async_stream_infer("counter", prompt("p"))
    result, error = answers.get(timeout=10)
    assert error is None
    assert result.as_numpy("text_output").tolist() == [b"p0 1 2 3 "]
    client.stop_stream()


def test_stopping_a_stream_midway_cancels(
    client: triton.InferenceServerClient, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.005
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("counter", prompt("p", stream=True, max_tokens="10000"))
    answers.get(timeout=10)
    client.stop_stream(cancel_requests=True)
    assert decoder.handles[0].cancelled.wait(5)


def test_asyncio_client_cancels_and_goes_on(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.005

    async def main() -> list[bytes]:
        async with triton_aio.InferenceServerClient(served.address) as client:
            slow = asyncio.create_task(client.infer("counter", prompt("p", max_tokens="10000")))
            await asyncio.to_thread(decoder.submitted.wait, 5)
            slow.cancel()
            result = await client.infer("counter", prompt("p", max_tokens="1"))
            return list(result.as_numpy("text_output"))

    assert asyncio.run(main()) == [b"p0 "]
    assert decoder.handles[0].cancelled.wait(5)


def test_a_client_timeout_is_a_deadline(
    client: triton.InferenceServerClient, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.01
    start = time.monotonic()
    with pytest.raises(InferenceServerException) as error:
        client.infer("counter", prompt("p", max_tokens="10000"), client_timeout=0.2)
    assert error.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert time.monotonic() - start < 5
