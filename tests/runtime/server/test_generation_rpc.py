"""tersor.v1.Generation."""

from __future__ import annotations

import time

import grpc
import pytest
from fake_models import FakeDecoderEngine
from running_server import RunningServer

from tersor.protos.tersor.v1 import generation_pb2 as pb
from tersor.runtime.engine.types import Finished, FinishReason, SamplingParams, Usage
from tersor.runtime.errors import InvalidRequestError
from tersor.runtime.server.generation_messages import GenerationMessages, sampling_of


def test_chunks_then_one_complete(served: RunningServer, decoder: FakeDecoderEngine) -> None:
    decoder.step_seconds = 0.005
    request = pb.GenerateRequest(model="counter", text="ab", request_id="r1")
    *chunks, last = list(served.generation.Generate(request))
    assert "".join(r.chunk.text for r in chunks) == "0 1 2 3 "
    assert [i for r in chunks for i in r.chunk.token_ids] == [48, 49, 50, 51]
    assert {r.request_id for r in (*chunks, last)} == {"r1"}
    assert last.complete.finish_reason == pb.FINISH_REASON_LENGTH
    assert not last.complete.HasField("cumulative_logprob")
    usage = last.complete.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 4)
    assert (usage.queue_seconds, usage.load_seconds, usage.prefill_seconds) == (0.25, 0.5, 0.125)


def test_token_ids_are_used_as_they_are(served: RunningServer, decoder: FakeDecoderEngine) -> None:
    request = pb.GenerateRequest(model="counter", token_ids=pb.TokenIds(ids=[5, 6]))
    assert len(list(served.generation.Generate(request))) >= 2
    assert decoder.requests[-1].prompt == (5, 6)


def test_logprobs(served: RunningServer, decoder: FakeDecoderEngine) -> None:
    request = pb.GenerateRequest(
        model="counter", text="p", sampling=pb.SamplingParams(logprobs=1, max_tokens=2)
    )
    *chunks, last = list(served.generation.Generate(request))
    tokens = [token for r in chunks for token in r.chunk.logprobs]
    assert [(t.token_id, t.logprob, t.rank) for t in tokens] == [(48, -0.5, 1), (49, -0.5, 1)]
    assert tokens[0].top == [pb.TokenLogprob(token_id=48, logprob=-0.5)]
    assert last.complete.cumulative_logprob == -1.0


def test_an_unset_field_is_the_default_and_an_explicit_zero_is_zero() -> None:
    defaults = SamplingParams(temperature=0.5, top_k=4, seed=3, max_tokens=9)
    assert sampling_of(pb.SamplingParams(), defaults) == defaults
    given = sampling_of(
        pb.SamplingParams(temperature=0, top_k=0, seed=0, stop=["a"], stop_token_ids=[1]), defaults
    )
    assert (given.temperature, given.top_k, given.seed, given.max_tokens) == (0, 0, 0, 9)
    assert (given.stop, given.stop_token_ids) == (("a",), (1,))


def test_every_sampling_field_of_the_engine_is_in_the_protocol() -> None:
    assert set(pb.SamplingParams.DESCRIPTOR.fields_by_name) == set(
        SamplingParams.__dataclass_fields__
    )
    assert set(pb.Usage.DESCRIPTOR.fields_by_name) == set(Usage.__dataclass_fields__)


@pytest.mark.parametrize(("match", "field"), [("end", "stop_string"), (7, "stop_token_id")])
def test_what_stopped_it(match: str | int, field: str) -> None:
    usage = Usage(
        prompt_tokens=1, completion_tokens=1, queue_seconds=0, load_seconds=0, prefill_seconds=0,
        decode_seconds=0, time_to_first_token_seconds=0,
    )  # fmt: skip
    event = Finished(
        reason=FinishReason.STOP, stop_match=match, cumulative_logprob=None, usage=usage
    )
    (response,) = GenerationMessages("id").take([event])
    assert response.complete.WhichOneof("stop_match") == field
    assert getattr(response.complete, field) == match


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (pb.GenerateRequest(model="counter"), "INVALID_ARGUMENT", "no prompt"),
        (pb.GenerateRequest(model="nobody", text="p"), "NOT_FOUND", "'nobody'"),
        (pb.GenerateRequest(model="doubler", text="p"), "UNIMPLEMENTED", "is a graph"),
        (pb.GenerateRequest(model="counter", text="p", request_id="x" * 257),
         "INVALID_ARGUMENT", "request_id"),
    ],
)  # fmt: skip
def test_bad_requests(
    served: RunningServer, request_: pb.GenerateRequest, code: str, message: str
) -> None:
    with pytest.raises(grpc.RpcError, match=message) as error:
        list(served.generation.Generate(request_))
    assert error.value.code().name == code


def test_what_the_engine_refuses(served: RunningServer, decoder: FakeDecoderEngine) -> None:
    decoder.refusal = InvalidRequestError("The prompt has 70 tokens, expected at most 64.")
    with pytest.raises(grpc.RpcError, match="70 tokens") as error:
        list(served.generation.Generate(pb.GenerateRequest(model="counter", text="p")))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_cancellation_and_deadline(served: RunningServer, decoder: FakeDecoderEngine) -> None:
    decoder.step_seconds = 0.005
    request = pb.GenerateRequest(
        model="counter", text="p", sampling=pb.SamplingParams(max_tokens=10_000)
    )
    call = served.generation.Generate(request)
    next(call)
    call.cancel()
    assert decoder.handles[0].cancelled.wait(5)
    with pytest.raises(grpc.RpcError) as error:
        list(served.generation.Generate(request, timeout=0.1))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    deadline = decoder.requests[1].deadline
    assert deadline is not None
    assert deadline < time.monotonic() + 1


def test_a_cancelled_call_is_counted_as_cancelled(
    served: RunningServer, decoder: FakeDecoderEngine
) -> None:
    def count(status: str) -> float:
        return served.sample("tersor_requests_total", model="", method="Generate", status=status)

    before = count("CANCELLED")
    decoder.step_seconds = 0.005
    call = served.generation.Generate(
        pb.GenerateRequest(model="counter", text="p", sampling=pb.SamplingParams(max_tokens=10_000))
    )
    next(call)
    call.cancel()
    until = time.monotonic() + 5
    while count("CANCELLED") == before and time.monotonic() < until:
        time.sleep(0.005)
    assert count("CANCELLED") == before + 1


def test_tokenize(served: RunningServer) -> None:
    def ids(**fields: bool) -> list[int]:
        request = pb.TokenizeRequest(model="counter", text="ab", **fields)
        return list(served.generation.Tokenize(request).token_ids)

    assert ids() == ids(special_tokens=True) == [1, 97, 98]
    assert ids(special_tokens=False) == [97, 98]


def test_model_info(served: RunningServer) -> None:
    info = served.generation.ModelInfo(pb.ModelInfoRequest(model="counter"))
    assert (info.program, info.version, info.ready, info.file_bytes) == ("decoder", "1", True, 1234)
    assert info.decoder.max_context == 64
    assert info.decoder.bos_token_id == 1
    assert list(info.decoder.eos_token_ids) == [2, 3]
    graph = served.generation.ModelInfo(pb.ModelInfoRequest(model="doubler"))
    assert (graph.program, graph.HasField("decoder")) == ("graph", False)
