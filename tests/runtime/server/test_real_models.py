"""Real bundles behind the real server: pico, a language model, and MiniLM, a sentence encoder."""

from __future__ import annotations

import json
import queue
import time
from collections import defaultdict
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from oip import Value, array_output, infer_request, text_output
from running_server import RunningServer

from tersor.protos.inference import grpc_service_pb2 as inference
from tersor.protos.tersor.v1 import generation_pb2 as generation

PROMPT = "def fibonacci(n):\n"


def generate(real: RunningServer, **fields: Any) -> list[generation.GenerateResponse]:
    request = generation.GenerateRequest(model="pico", **fields)
    return list(real.generation.Generate(request))


def text_of(responses: list[generation.GenerateResponse]) -> str:
    return "".join(response.chunk.text for response in responses)


def pages_come_to_be_used(real: RunningServer, *, used: bool) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if (real.sample("tersor_kv_pages_used", model="pico") > 0) == used:
            return True
        time.sleep(0.01)
    return False


def test_every_way_to_ask_gives_the_same_greedy_text(real: RunningServer) -> None:
    sampling = generation.SamplingParams(max_tokens=24, temperature=0)
    text = text_of(generate(real, text=PROMPT, sampling=sampling))
    assert len(text) > 20
    ids = real.generation.Tokenize(generation.TokenizeRequest(model="pico", text=PROMPT)).token_ids
    tokens = generation.TokenIds(ids=ids)
    assert text_of(generate(real, token_ids=tokens, sampling=sampling)) == text
    inputs: dict[str, Value] = {"text_input": PROMPT, "stream": np.array([True])}
    request = infer_request("pico", inputs, max_tokens="24", temperature="0", request_id="1")
    streamed = list(real.inference.ModelStreamInfer(iter([request])))
    assert "".join(text_output(r.infer_response) for r in streamed) == text
    assert text_output(streamed[-1].infer_response) != ""
    assert text_output(real.inference.ModelInfer(request)) == text


def test_usage_tells_a_cold_start_once(real: RunningServer) -> None:
    sampling = generation.SamplingParams(max_tokens=4, logprobs=2)
    *chunks, last = generate(real, text=PROMPT, sampling=sampling)
    assert last.complete.usage.load_seconds == 0  # the test before loaded the weights
    assert last.complete.usage.completion_tokens == 4
    logprobs = [token for chunk in chunks for token in chunk.chunk.logprobs]
    total = sum(token.logprob for token in logprobs)
    assert last.complete.cumulative_logprob == pytest.approx(total, rel=1e-5)
    assert all(token.rank == 1 and len(token.top) == 2 for token in logprobs)


def test_a_seed_makes_sampling_repeatable(real: RunningServer) -> None:
    sampling = generation.SamplingParams(max_tokens=16, temperature=1, seed=7)
    first = text_of(generate(real, text=PROMPT, sampling=sampling))
    assert text_of(generate(real, text=PROMPT, sampling=sampling)) == first


def test_what_ended_the_text(real: RunningServer) -> None:
    sampling = generation.SamplingParams(max_tokens=64, stop=["\n"])
    *_, last = generate(real, text="import os", sampling=sampling)
    assert last.complete.finish_reason == generation.FINISH_REASON_STOP
    assert last.complete.stop_string == "\n"


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
    ],
)
def test_sampling_out_of_range(
    real: RunningServer, sampling: dict[str, float], message: str
) -> None:
    with pytest.raises(grpc.RpcError, match=message) as error:
        generate(real, text="x", sampling=generation.SamplingParams(**sampling))  # type: ignore[arg-type]
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_prompt_beyond_the_context(real: RunningServer) -> None:
    with pytest.raises(grpc.RpcError, match="context of 2048 tokens") as error:
        real.inference.ModelInfer(infer_request("pico", {"text_input": "x " * 10_000}))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_cancelled_and_expired_requests_free_their_pages(real: RunningServer) -> None:
    sampling = generation.SamplingParams(max_tokens=1500, ignore_eos=True)
    request = generation.GenerateRequest(model="pico", text=PROMPT, sampling=sampling)
    calls = [real.generation.Generate(request) for _ in range(3)]
    for call in calls:
        next(call)
    assert pages_come_to_be_used(real, used=True)
    for call in calls:
        call.cancel()
    assert pages_come_to_be_used(real, used=False)
    expired = infer_request(
        "pico", {"text_input": PROMPT}, max_tokens=1500, ignore_eos=True, timeout=300_000
    )
    with pytest.raises(grpc.RpcError) as error:
        real.inference.ModelInfer(expired)
    assert error.value.code() in {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # the engine already knows that it would be too late
    }
    assert pages_come_to_be_used(real, used=False)


def test_sentences_by_text_and_by_their_tokens(real: RunningServer) -> None:
    texts = ["A stray cat slept.", "A cat was sleeping.", "The central bank raised rates."]
    answer = real.inference.ModelInfer(
        infer_request("minilm", {"text": texts}, outputs=["sentence_embedding"])
    )
    vectors = array_output(answer, "sentence_embedding", "<f4").astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    ids = np.array([[101, 1037, 4937, 2001, 5777, 1012, 102]])  # the second sentence, in BERT's ids
    tensors = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    answer = real.inference.ModelInfer(infer_request("minilm", tensors))
    assert [output.name for output in answer.outputs] == ["last_hidden_state", "sentence_embedding"]
    vector = array_output(answer, "sentence_embedding", "<f4")[0].astype(np.float64)
    assert vector @ vectors[1] / np.linalg.norm(vector) > 0.9999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": np.array([[10**6]])}, "table of 30522 rows"),
        ({"input_ids": np.array([[1, 2]])}, "differ in shape"),
        ({"input_ids": np.array([[1]], dtype=np.int32)}, "INT32, expected INT64"),
        ({"input_ids": np.array([1])}, r"shape \[1\], expected \[-1, -1\]"),
        ({"tokens": np.array([[1]])}, "'tokens' is unknown"),
    ],
)
def test_bad_tensors(real: RunningServer, change: dict[str, Any], message: str) -> None:
    one = np.array([[1]])
    tensors = {"input_ids": one, "attention_mask": one, "token_type_ids": one} | change
    with pytest.raises(grpc.RpcError, match=message) as error:
        real.inference.ModelInfer(infer_request("minilm", tensors))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_text_model_is_no_language_model(real: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(real.generation.Generate(generation.GenerateRequest(model="minilm", text="x")))
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_calls_are_counted_by_model(real: RunningServer) -> None:
    labels = {"model": "minilm", "method": "ModelInfer", "status": "OK"}
    before = real.sample("tersor_requests_total", **labels)
    real.inference.ModelInfer(infer_request("minilm", {"text": ["a"]}))
    assert real.sample("tersor_requests_total", **labels) == before + 1
    unknown = infer_request("a model that only a client knows", {"text": ["a"]})
    with pytest.raises(grpc.RpcError):
        real.inference.ModelInfer(unknown)
    labels = {"model": "", "method": "ModelInfer", "status": "NOT_FOUND"}
    assert real.sample("tersor_requests_total", **labels) >= 1


def triton_prompt(text: str, **sampling: str) -> list[triton.InferInput]:
    values = {"text_input": text, "sampling_parameters": json.dumps(sampling)}
    inputs = []
    for name, value in values.items():
        inputs.append(triton.InferInput(name, [1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    inputs.append(triton.InferInput("stream", [1], "BOOL"))
    inputs[-1].set_data_from_numpy(np.array([True]))
    return inputs


def triton_text(text: str) -> list[triton.InferInput]:
    made = triton.InferInput("text", [1, 1], "BYTES")
    made.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    return [made]


def test_an_unmodified_triton_client_on_both_models(real: RunningServer) -> None:
    with triton.InferenceServerClient(real.address) as client:
        assert client.is_server_ready()
        unary = client.infer("pico", triton_prompt(PROMPT, max_tokens="12"))
        expected = unary.as_numpy("text_output")[0].decode()
        vector = client.infer("minilm", triton_text("hello")).as_numpy("sentence_embedding")
        assert vector.shape == (1, 384)

        answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        for index in range(4):
            client.async_stream_infer(
                "pico", triton_prompt(PROMPT, max_tokens="12"), request_id=f"text{index}"
            )
            client.async_stream_infer("minilm", triton_text("hello"), request_id=f"vector{index}")
        texts: dict[str, str] = defaultdict(str)
        open_requests = 8
        while open_requests:
            result, error = answers.get(timeout=60)
            assert error is None
            response = result.get_response()
            if response.model_name == "minilm":
                np.testing.assert_allclose(
                    result.as_numpy("sentence_embedding"), vector, rtol=1e-3, atol=1e-4
                )
            else:
                texts[response.id] += result.as_numpy("text_output")[0].decode()
            open_requests -= response.parameters["triton_final_response"].bool_param
        assert set(texts.values()) == {expected}

        client.async_stream_infer("pico", triton_prompt(PROMPT, max_tokens="1500"))
        answers.get(timeout=60)
        client.stop_stream(cancel_requests=True)
    assert pages_come_to_be_used(real, used=False)


def test_the_server_is_still_well(real: RunningServer) -> None:
    assert real.inference.ServerReady(inference.ServerReadyRequest()).ready
