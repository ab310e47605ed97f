"""ModelInfer on a graph: its own tensors, text, and every way to get them wrong."""

from __future__ import annotations

import time

import grpc
import numpy as np
import pytest
import torch
from fake_models import FakeGraphEngine
from oip import Array, array_output, infer_request
from running_server import RunningServer

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.errors import OverloadedError

X = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
MASK = np.array([[1, 0, 1], [0, 0, 1]], dtype=np.int8)


def inputs(**changes: Array | None) -> dict[str, Array]:
    merged: dict[str, Array | None] = {"x": X, "mask": MASK, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def test_the_programs_own_tensors(served: RunningServer, graph: FakeGraphEngine) -> None:
    answer = served.inference.ModelInfer(infer_request("doubler", inputs(), request_id="5"))
    assert (answer.id, answer.model_version) == ("5", "1")
    assert [(o.name, o.datatype) for o in answer.outputs] == [
        ("doubled", "FP32"), ("kept", "BOOL"), ("rounded", "BF16"),
    ]  # fmt: skip
    assert array_output(answer, "doubled", "<f4").tolist() == (X * 2).tolist()
    assert array_output(answer, "kept", "?").tolist() == (MASK != 0).tolist()
    bits = torch.from_numpy(array_output(answer, "rounded", "<i2").copy())
    assert bits.view(torch.bfloat16).float().tolist() == X.tolist()


def test_requested_outputs_in_the_requests_order(
    served: RunningServer, graph: FakeGraphEngine
) -> None:
    request = infer_request("doubler", inputs(), outputs=["kept", "doubled"])
    assert [o.name for o in served.inference.ModelInfer(request).outputs] == ["kept", "doubled"]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_text_stands_for_the_tensors(
    served: RunningServer, graph: FakeGraphEngine, shape: list[int]
) -> None:
    request = infer_request("doubler", {"text": ["a", "abc"]})
    request.inputs[0].shape[:] = shape
    answer = served.inference.ModelInfer(request)
    assert array_output(answer, "doubled", "<f4").tolist() == [[2.0] * 3, [6.0] * 3]


def test_long_texts_are_tokenized_aside(served: RunningServer, graph: FakeGraphEngine) -> None:
    answer = served.inference.ModelInfer(infer_request("doubler", {"text": ["a" * 20_000]}))
    assert array_output(answer, "doubled", "<f4").tolist() == [[40_000.0] * 3]


def typed_request() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="doubler")
    x = request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    x.contents.fp32_contents.extend([1, 2, 3])
    mask = request.inputs.add(name="mask", datatype="INT8", shape=[1, 3])
    mask.contents.int_contents.extend([1, 0, -1])
    return request


def test_typed_requests_get_typed_answers_where_the_protocol_can(
    served: RunningServer, graph: FakeGraphEngine
) -> None:
    request = typed_request()
    raw = served.inference.ModelInfer(request)
    assert len(raw.raw_output_contents) == 3  # BF16 is legal only as raw
    for name in ("doubled", "kept"):
        request.outputs.add(name=name)
    typed = served.inference.ModelInfer(request)
    assert not typed.raw_output_contents
    assert list(typed.outputs[0].contents.fp32_contents) == [2, 4, 6]
    assert list(typed.outputs[1].contents.bool_contents) == [True, False, True]


LONG = np.zeros((5, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (infer_request("doubler", {"y": X, "x": X, "mask": MASK}),
         "Input 'y' is unknown, expected x, mask, or text alone"),
        (infer_request("doubler", {"x": X}), "Input 'mask' is missing"),
        (infer_request("doubler", inputs(x=X.astype(np.int64))), "INT64, expected FP32"),
        (infer_request("doubler", inputs(x=X[:, :2])), r"shape \[2, 2\], expected \[-1, 3\]"),
        (infer_request("doubler", inputs(x=X[0])), r"shape \[3\], expected \[-1, 3\]"),
        (infer_request("doubler", inputs(mask=MASK[:1])), "differ in their first dimension"),
        (infer_request("doubler", {"x": LONG, "mask": LONG.astype(np.int8)}),
         "5 rows, expected 1 to 4"),
        (infer_request("doubler", {"x": LONG[:0], "mask": LONG[:0].astype(np.int8)}), "0 rows"),
        (infer_request("doubler", inputs(), outputs=["tripled"]), "'tripled' is unknown"),
        (infer_request("doubler", {"text": ["a"], "x": X}), "'text' stands alone"),
        (infer_request("doubler", {"text": ["a"] * 5}), "5 rows"),
        (infer_request("doubler", {"text": X}), "expected BYTES of shape"),
        (infer_request("doubler", inputs(), timeout="x"), "'timeout'"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_is_wrong(
    served: RunningServer, graph: FakeGraphEngine, request_: pb.ModelInferRequest, message: str
) -> None:
    with pytest.raises(grpc.RpcError, match=message) as error:
        served.inference.ModelInfer(request_)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not graph.calls


def test_wrong_raw_length(served: RunningServer, graph: FakeGraphEngine) -> None:
    request = infer_request("doubler", inputs())
    request.raw_input_contents[0] = b"\0" * 23
    with pytest.raises(grpc.RpcError, match="23 bytes of raw contents, expected 24"):
        served.inference.ModelInfer(request)


def test_raw_and_typed_do_not_mix(served: RunningServer, graph: FakeGraphEngine) -> None:
    request = infer_request("doubler", inputs())
    request.inputs[1].contents.int_contents.append(1)
    with pytest.raises(grpc.RpcError, match="'mask' sets `contents` although"):
        served.inference.ModelInfer(request)


def test_deadlines(served: RunningServer, graph: FakeGraphEngine) -> None:
    graph.hold.clear()
    with pytest.raises(grpc.RpcError) as error:
        served.inference.ModelInfer(infer_request("doubler", inputs(), timeout=50_000))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert graph.futures[0].cancelled()
    with pytest.raises(grpc.RpcError) as error:
        served.inference.ModelInfer(infer_request("doubler", inputs()), timeout=0.05)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    deadlines = [deadline for _, deadline in graph.calls]
    assert all(d is not None and d < time.monotonic() + 1 for d in deadlines)


def test_cancelling_a_call_cancels_the_work(served: RunningServer, graph: FakeGraphEngine) -> None:
    graph.hold.clear()
    call = served.inference.ModelInfer.future(infer_request("doubler", inputs()))
    while not graph.futures:
        time.sleep(0.001)
    call.cancel()
    for _ in range(1000):
        if graph.futures[0].cancelled():
            break
        time.sleep(0.005)
    assert graph.futures[0].cancelled()


def test_overload(served: RunningServer, graph: FakeGraphEngine) -> None:
    graph.refusal = OverloadedError("full", retry_after_seconds=1)
    with pytest.raises(grpc.RpcError) as error:
        served.inference.ModelInfer(infer_request("doubler", inputs()))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_inputs_reach_the_engine_without_a_copy_of_their_own(
    served: RunningServer, graph: FakeGraphEngine
) -> None:
    served.inference.ModelInfer(infer_request("doubler", inputs()))
    received = graph.calls[-1][0]
    assert received["x"].dtype == torch.float32
    assert received["x"].tolist() == X.tolist()
    assert received["mask"].dtype == torch.int8
