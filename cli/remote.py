"""A client of the server's own typed service."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from tersor.cli.errors import RemoteError
from tersor.protos.tersor.v1 import generation_pb2, generation_pb2_grpc
from tersor.runtime.engine.types import SamplingParams

CONNECT_SECONDS = 10.0


def stream(server: str, model: str, prompt: str, sampling: SamplingParams) -> Iterator[str]:
    """Text pieces of one continuation computed by `server` ("host:port").

    Raises:
        RemoteError: the server cannot be reached, or refused the request (its own words).
    """
    request = generation_pb2.GenerateRequest(model=model, text=prompt, sampling=_to_proto(sampling))
    with grpc.insecure_channel(server) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise RemoteError(
                f"no server answers at {server} within {CONNECT_SECONDS:.0f} s; "
                "start one with `tersor serve`, or check --server HOST:PORT"
            ) from None
        stub = generation_pb2_grpc.GenerationStub(channel)
        try:
            for response in stub.Generate(request):
                if response.HasField("chunk"):
                    yield response.chunk.text
        except grpc.RpcError as error:
            raise RemoteError(f"{error.code().name}: {error.details()}") from None


def _to_proto(sampling: SamplingParams) -> generation_pb2.SamplingParams:
    return generation_pb2.SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        stop=sampling.stop,
    )
