"""ModelInfer on a decoder: every convention of the clients of other servers."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest
from fake_models import FakeDecoderEngine, FakeHost
from oip import Value, array_output, infer_request, raw_output, text_output
from running_server import RunningServer

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.engine.types import SamplingParams
from tersor.runtime.errors import InternalError, OverloadedError

TRUE, FALSE = np.array([True]), np.array([False])


def test_the_prompt_stands_before_the_text_unless_excluded(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    answer = served.inference.ModelInfer(
        infer_request("counter", {"text_input": "p:"}, request_id="id-7")
    )
    assert text_output(answer) == "p:0 1 2 3 "
    assert (answer.id, answer.model_name, answer.model_version) == ("id-7", "counter", "1")
    assert list(answer.outputs[0].shape) == [1]
    excluded: dict[str, Value] = {"text_input": "p:", "exclude_input_in_output": TRUE}
    assert (
        text_output(served.inference.ModelInfer(infer_request("counter", excluded))) == "0 1 2 3 "
    )
    streamed: dict[str, Value] = {"text_input": "p:", "stream": TRUE}
    assert (
        text_output(served.inference.ModelInfer(infer_request("counter", streamed))) == "0 1 2 3 "
    )
    assert decoder.requests[0].prompt == "p:"


@pytest.mark.parametrize("version", ["", "1"])
def test_versions(served: RunningServer, decoder: FakeDecoderEngine, version: str) -> None:
    request = infer_request("counter", {"text_input": "p"})
    request.model_version = version
    assert served.inference.ModelInfer(request).model_version == "1"


def test_sampling_from_parameters_json_and_tensors(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    inputs: dict[str, Value] = {
        "text_input": "p",
        "sampling_parameters": json.dumps({"max_tokens": "2", "min_tokens": "1", "stop": ["x"]}),
        "temperature": np.array([[0.5]], dtype=np.float32),
        "seed": np.array([9], dtype=np.uint64),
        "stop_token_ids": np.array([4, 5], dtype=np.int32),
    }
    request = infer_request("counter", inputs, max_tokens=3, top_p="0.75", min_p=0.25, top_k=7)
    answer = served.inference.ModelInfer(request)
    assert text_output(answer) == "p0 1 "
    assert decoder.requests[-1].sampling == SamplingParams(
        max_tokens=2, min_tokens=1, stop=("x",), temperature=0.5, seed=9, stop_token_ids=(4, 5),
        top_p=0.75, min_p=0.25, top_k=7,
    )  # fmt: skip


def test_stop_words_of_any_shape(served: RunningServer, decoder: FakeDecoderEngine) -> None:
    request = infer_request("counter", {"text_input": "p", "stop_words": ["a", "b"]})
    request.inputs[1].shape[:] = [1, 2]
    served.inference.ModelInfer(request)
    assert decoder.requests[-1].sampling.stop == ("a", "b")


def test_further_outputs_come_with_their_flags(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    flags = (
        "finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens",
    )  # fmt: skip
    inputs: dict[str, Value] = {"text_input": "ab", "exclude_input_in_output": TRUE}
    inputs |= {f"return_{flag}": TRUE for flag in flags}
    answer = served.inference.ModelInfer(infer_request("counter", inputs, max_tokens=2))
    assert [output.name for output in answer.outputs] == ["text_output", *flags]
    assert text_output(answer, "finish_reason") == "length"
    assert array_output(answer, "cumulative_logprob", "<f4").tolist() == [-1.0]
    assert array_output(answer, "num_input_tokens", "<u4").tolist() == [3]
    assert array_output(answer, "num_output_tokens", "<u4").tolist() == [2]
    assert json.loads(text_output(answer, "logprobs")) == [
        {"48": {"logprob": -0.5, "rank": 1, "decoded_token": "0"}},
        {"49": {"logprob": -0.5, "rank": 1, "decoded_token": "1"}},
    ]
    assert decoder.requests[-1].sampling.logprobs == 0


def test_named_outputs_are_the_only_ones_and_none_costs_unasked(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    names = ["finish_reason", "num_output_tokens", "cumulative_logprob", "logprobs"]
    answer = served.inference.ModelInfer(
        infer_request("counter", {"text_input": "p"}, outputs=names)
    )
    assert [output.name for output in answer.outputs] == ["finish_reason", "num_output_tokens"]
    assert decoder.requests[-1].sampling.logprobs is None
    asked = infer_request("counter", {"text_input": "p"}, outputs=names, logprobs=1)
    assert len(served.inference.ModelInfer(asked).outputs) == 4
    flagged: dict[str, Value] = {"text_input": "p", "return_logprobs": TRUE}
    only_text = infer_request("counter", flagged, outputs=["text_output"])
    assert [o.name for o in served.inference.ModelInfer(only_text).outputs] == ["text_output"]


def test_typed_requests_get_typed_answers(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    request = pb.ModelInferRequest(model_name="counter")
    text = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    text.contents.bytes_contents.append(b"p")
    flag = request.inputs.add(name="return_num_output_tokens", datatype="BOOL", shape=[1])
    flag.contents.bool_contents.append(True)
    answer = served.inference.ModelInfer(request)
    assert not answer.raw_output_contents
    assert list(answer.outputs[0].contents.bytes_contents) == [b"p0 1 2 3 "]
    assert list(answer.outputs[1].contents.uint_contents) == [4]


INT = np.array([1], dtype=np.int32)


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({"prompt": "p"}, {}, "Input 'prompt' is unknown, expected one of text_input"),
        ({}, {}, "Input 'text_input' is missing"),
        ({"text_input": ["a", "b"]}, {}, r"shape \[2\], expected one element"),
        ({"text_input": INT}, {}, "wrong datatype, expected BYTES"),
        ({"text_input": "p", "stream": INT}, {}, "datatype INT32, expected BOOL"),
        ({"text_input": "p", "stream": np.array([True, False])}, {}, "expected one element"),
        ({"text_input": "p", "sampling_parameters": "{"}, {}, "not JSON"),
        ({"text_input": "p", "sampling_parameters": '{"max_tokns": 1}'}, {}, "'max_tokns'"),
        ({"text_input": "p", "max_tokens": "x"}, {}, "'max_tokens' is 'x'"),
        ({"text_input": "p"}, {"max_token": 1}, "Parameter 'max_token' is unknown"),
        ({"text_input": "p"}, {"stream": "maybe"}, "'stream' is 'maybe'"),
        ({"text_input": "p"}, {"timeout": "soon"}, "'timeout' is 'soon'"),
        ({"text_input": "p"}, {"timeout": -1}, "'timeout' is -1"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_is_wrong(
    served: RunningServer,
    decoder: FakeDecoderEngine,
    inputs: dict[str, object],
    parameters: dict[str, object],
    message: str,
) -> None:
    request = infer_request("counter", inputs, **parameters)  # type: ignore[arg-type]
    with pytest.raises(grpc.RpcError, match=message) as error:
        served.inference.ModelInfer(request)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not decoder.requests


def test_text_that_is_not_utf8(served: RunningServer, decoder: FakeDecoderEngine) -> None:
    request = infer_request("counter", {"text_input": "p"})
    request.raw_input_contents[0] = b"\1\0\0\0\xff"
    with pytest.raises(grpc.RpcError, match="'text_input' is not UTF-8"):
        served.inference.ModelInfer(request)


def test_unknown_names_and_features_have_their_own_status(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    cases = [
        (infer_request("nobody", {"text_input": "p"}), grpc.StatusCode.NOT_FOUND, "'nobody'"),
        (infer_request("counter", {"text_input": "p"}, outputs=["text"]),
         grpc.StatusCode.INVALID_ARGUMENT, "Output 'text' is unknown"),
        (infer_request("counter", {"text_input": "p"}, n=2), grpc.StatusCode.UNIMPLEMENTED, "'n'"),
        (infer_request("counter", {"text_input": "p"}, sequence_id=4),
         grpc.StatusCode.UNIMPLEMENTED, "'sequence_id'"),
    ]  # fmt: skip
    old = infer_request("counter", {"text_input": "p"})
    old.model_version = "2"
    cases.append((old, grpc.StatusCode.NOT_FOUND, "'2'"))
    for request, code, message in cases:
        with pytest.raises(grpc.RpcError, match=message) as error:
            served.inference.ModelInfer(request)
        assert error.value.code() == code


def test_reserved_parameters_are_not_sampling(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    request = infer_request(
        "counter", {"text_input": "p"}, priority=2, triton_enable_empty_final_response=True,
        binary_data_output=True, sequence_id=0, timeout=0,
    )  # fmt: skip
    assert text_output(served.inference.ModelInfer(request)).startswith("p0")
    assert decoder.requests[-1].deadline is None


def test_overload_answers_with_a_retry_hint(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.refusal = OverloadedError("The queue is full.", retry_after_seconds=0.25)
    with pytest.raises(grpc.RpcError) as error:
        served.inference.ModelInfer(infer_request("counter", {"text_input": "p"}))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.value.details() == "The queue is full."
    trailing: Any = error.value.trailing_metadata()  # Any: typed as no pairs, though it is
    assert dict(trailing)["retry-after-ms"] == "250"


def test_failures_of_the_engine_and_defects_never_show_a_traceback(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.failure = InternalError("The step failed.")
    with pytest.raises(grpc.RpcError, match="The step failed") as error:
        served.inference.ModelInfer(infer_request("counter", {"text_input": "p"}))
    assert error.value.code() == grpc.StatusCode.INTERNAL
    decoder.refusal = ZeroDivisionError("our own text")
    with pytest.raises(grpc.RpcError, match=r"Internal error [0-9a-f]{8}") as error:
        served.inference.ModelInfer(infer_request("counter", {"text_input": "p"}))
    assert "our own text" not in (error.value.details() or "")
    assert served.inference.ServerLive(pb.ServerLiveRequest()).live


def test_the_timeout_parameter_and_the_calls_deadline_reach_the_engine(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.02
    slow = infer_request("counter", {"text_input": "p"}, max_tokens=500, timeout=100_000)
    with pytest.raises(grpc.RpcError) as error:
        served.inference.ModelInfer(slow)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    slow.parameters["timeout"].int64_param = 60_000_000
    with pytest.raises(grpc.RpcError) as error:
        served.inference.ModelInfer(slow, timeout=0.15)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    deadline = decoder.requests[-1].deadline
    assert deadline is not None
    assert deadline < time.monotonic() + 1


def test_cancelling_a_call_cancels_the_generation(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.01
    call = served.inference.ModelInfer.future(
        infer_request("counter", {"text_input": "p"}, max_tokens=10_000)
    )
    while not decoder.handles:
        time.sleep(0.001)
    call.cancel()
    assert decoder.handles[0].cancelled.wait(5)


def test_calls_are_counted_and_timed_by_model_method_and_status(
    served: RunningServer, decoder: FakeDecoderEngine, host: FakeHost
) -> None:
    def count(status: str) -> float:
        return served.sample("tersor_requests_total", model="", method="ModelInfer", status=status)

    before = count("OK"), count("INVALID_ARGUMENT")
    served.inference.ModelInfer(infer_request("counter", {"text_input": "p"}))
    with pytest.raises(grpc.RpcError):
        served.inference.ModelInfer(infer_request("counter", {}))
    assert (count("OK"), count("INVALID_ARGUMENT")) == (before[0] + 1, before[1] + 1)
    timed = served.sample("tersor_request_duration_seconds_count", model="", method="ModelInfer")
    assert timed >= 2


def test_a_message_beyond_the_limit_is_refused_and_the_server_stays(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        served.inference.ModelInfer(infer_request("counter", {"text_input": "x" * (1 << 20)}))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert served.inference.ServerLive(pb.ServerLiveRequest()).live


def test_many_unary_calls_at_once(served: RunningServer, decoder: FakeDecoderEngine) -> None:
    decoder.step_seconds = 0.002
    answers: dict[int, str] = {}

    def call(index: int) -> None:
        request = infer_request("counter", {"text_input": f"{index}:"}, max_tokens=1 + index % 5)
        answers[index] = text_output(served.inference.ModelInfer(request))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, text in answers.items():
        assert text == f"{index}:" + "".join(f"{i} " for i in range(1 + index % 5))


def test_raw_answers_have_one_entry_for_each_output(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    answer = served.inference.ModelInfer(infer_request("counter", {"text_input": "p"}))
    assert len(answer.raw_output_contents) == len(answer.outputs) == 1
    assert raw_output(answer, "text_output")[:4] == (9).to_bytes(4, "little")
