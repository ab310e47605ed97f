"""ModelStreamInfer: many requests on one stream, interleaved, each ending or failing alone."""

from __future__ import annotations

import itertools
import queue
import time
from collections import defaultdict
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from fake_models import FakeDecoderEngine, FakeGraphEngine
from oip import array_output, infer_request, text_output
from running_server import RunningServer

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.errors import DeadlineError
from tersor.runtime.server import stream_session

STREAM = np.array([True])


def streamed(text: str, request_id: str = "", tokens: int = 4) -> pb.ModelInferRequest:
    return infer_request(
        "counter", {"text_input": text, "stream": STREAM}, request_id=request_id, max_tokens=tokens
    )


def final(response: pb.ModelStreamInferResponse) -> bool:
    return response.infer_response.parameters["triton_final_response"].bool_param


class Requests:
    """A request stream that stays open until closed."""

    def __init__(self) -> None:
        self._queue: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()

    def send(self, *requests: pb.ModelInferRequest) -> None:
        for request in requests:
            self._queue.put(request)

    def close(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[pb.ModelInferRequest]:
        return iter(self._queue.get, None)


def test_deltas_and_the_final_mark(served: RunningServer, decoder: FakeDecoderEngine) -> None:
    decoder.step_seconds = 0.005
    responses = list(served.inference.ModelStreamInfer(iter([streamed("p", "3")])))
    assert "".join(text_output(r.infer_response) for r in responses) == "0 1 2 3 "
    assert [final(r) for r in responses] == [False] * (len(responses) - 1) + [True]
    assert all("triton_final_response" in r.infer_response.parameters for r in responses)
    assert {r.infer_response.id for r in responses} == {"3"}
    assert text_output(responses[-1].infer_response) != ""
    assert len(responses) == 4


def test_the_prompt_comes_first_if_asked_for(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    request = infer_request(
        "counter",
        {"text_input": "p:", "streaming": STREAM, "exclude_input_in_output": np.array([False])},
    )
    responses = list(served.inference.ModelStreamInfer(iter([request])))
    assert "".join(text_output(r.infer_response) for r in responses) == "p:0 1 2 3 "


def test_without_stream_there_is_one_whole_response(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.002
    request = infer_request("counter", {"text_input": "p:"})
    (response,) = served.inference.ModelStreamInfer(iter([request]))
    assert text_output(response.infer_response) == "p:0 1 2 3 "
    assert final(response)


def test_no_empty_response_is_sent_even_when_asked_for(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    request = streamed("p")
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    responses = list(served.inference.ModelStreamInfer(iter([request])))
    assert all(r.infer_response.outputs for r in responses)
    assert final(responses[-1])


def test_further_outputs_of_every_response(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.005
    request = infer_request(
        "counter",
        {"text_input": "p", "stream": STREAM} | {
            f"return_{name}": STREAM
            for name in ("finish_reason", "cumulative_logprob", "num_output_tokens")
        },
    )  # fmt: skip
    responses = [r.infer_response for r in served.inference.ModelStreamInfer(iter([request]))]
    reasons = [text_output(r, "finish_reason") for r in responses]
    assert reasons == ["None"] * (len(responses) - 1) + ["length"]
    assert sum(array_output(r, "num_output_tokens", "<u4")[0] for r in responses) == 4
    sums = [float(array_output(r, "cumulative_logprob", "<f4")[0]) for r in responses]
    assert sums == sorted(sums, reverse=True)
    assert sums[-1] == -2.0


def test_requests_of_one_stream_run_at_once_and_interleave(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.01
    requests = [streamed("p", str(index), tokens=6) for index in range(8)]
    start = time.monotonic()
    texts: dict[str, str] = defaultdict(str)
    order = []
    for response in served.inference.ModelStreamInfer(iter(requests)):
        texts[response.infer_response.id] += text_output(response.infer_response)
        order.append(response.infer_response.id)
    assert set(texts.values()) == {"0 1 2 3 4 5 "}
    assert len(texts) == 8
    assert time.monotonic() - start < 8 * 6 * 0.01
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes > 8


def test_a_graph_answers_once(served: RunningServer, graph: FakeGraphEngine) -> None:
    (response,) = served.inference.ModelStreamInfer(
        iter([infer_request("doubler", {"text": ["ab"]}, request_id="9")])
    )
    assert final(response)
    assert response.infer_response.id == "9"
    assert array_output(response.infer_response, "doubled", "<f4").tolist() == [[4.0] * 3]


def test_a_failed_request_leaves_the_stream_and_the_others_alone(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    requests = Requests()
    stream = served.inference.ModelStreamInfer(iter(requests))
    requests.send(infer_request("nobody", {"text_input": "p"}, request_id="bad"))
    failed = next(stream)
    assert "'nobody'" in failed.error_message
    assert failed.infer_response.id == "bad"
    assert final(failed)
    decoder.failure = DeadlineError("too late")
    decoder.step_seconds = 0.005
    requests.send(streamed("p", "late"))
    responses = [next(stream)]
    while not final(responses[-1]):
        responses.append(next(stream))
    assert responses[-1].error_message == "too late"
    decoder.failure = None
    requests.send(streamed("p", "good"))
    requests.close()
    rest = list(stream)
    assert "".join(text_output(r.infer_response) for r in rest) == "0 1 2 3 "


def test_the_client_may_choose_a_status_over_a_message(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    stream = served.inference.ModelStreamInfer(
        iter([infer_request("nobody", {"text_input": "p"})]),
        metadata=(("triton_grpc_error", "true"),),
    )
    with pytest.raises(grpc.RpcError, match="'nobody'") as error:
        list(stream)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_cancelling_the_stream_cancels_all_its_requests(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.005
    requests = Requests()
    stream = served.inference.ModelStreamInfer(iter(requests))
    requests.send(*(streamed("p", str(index), tokens=10_000) for index in range(3)))
    seen: set[str] = set()
    while len(seen) < 3:
        seen.add(next(stream).infer_response.id)
    stream.cancel()
    requests.close()
    assert all(handle.cancelled.wait(5) for handle in decoder.handles)
    assert len(decoder.handles) == 3


def test_the_streams_deadline_cancels_its_requests(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    decoder.step_seconds = 0.005
    responses = served.inference.ModelStreamInfer(iter([streamed("p", tokens=10_000)]), timeout=0.2)
    messages = []
    try:
        messages += [response.error_message for response in responses]
    except grpc.RpcError:
        assert responses.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    else:  # where the client's own timer comes late, the engine's word is first
        assert "deadline" in messages[-1]
    assert decoder.requests[0].deadline is not None
    start = time.monotonic()
    decoder.close()  # joins the request's thread: cancelled, or past its deadline by itself
    assert time.monotonic() - start < 5


def test_each_request_of_a_stream_is_counted(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    def count(status: str) -> float:
        return served.sample(
            "tersor_requests_total", model="", method="ModelStreamInfer", status=status
        )

    before = count("OK"), count("NOT_FOUND")
    bad = infer_request("nobody", {"text_input": "p"})
    list(served.inference.ModelStreamInfer(iter([streamed("p"), bad, streamed("p")])))
    assert (count("OK"), count("NOT_FOUND")) == (before[0] + 2, before[1] + 1)


def test_a_client_that_does_not_read_is_not_read_from(
    served: RunningServer, decoder: FakeDecoderEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_session, "MAX_REQUESTS", 8)
    monkeypatch.setattr(stream_session, "MAX_UNSENT_RESPONSES", 4)
    echoed = "x" * 16_000
    count = 600
    requests = (
        infer_request("counter", {"text_input": echoed}, request_id=str(index), max_tokens=1)
        for index in range(count)
    )
    stream = served.inference.ModelStreamInfer(requests)
    started = -1
    while started != len(decoder.requests):  # until gRPC's own buffers are full
        started = len(decoder.requests)
        time.sleep(0.2)
    ids = [response.infer_response.id for response in stream]
    assert sorted(ids, key=int) == [str(index) for index in range(count)]
    assert started < count


def test_an_empty_stream_ends(served: RunningServer) -> None:
    assert list(served.inference.ModelStreamInfer(iter([]))) == []
