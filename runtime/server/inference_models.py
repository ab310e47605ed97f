"""Runs one request of the Open Inference Protocol on a decoder or a graph."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import torch

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.engine.types import GenerationRequest
from tersor.runtime.errors import DeadlineError
from tersor.runtime.server.bridge import LONG_PROMPT, EventBridge
from tersor.runtime.server.contracts import ServedDecoder, ServedGraph
from tersor.runtime.server.deadlines import Clock, earlier
from tersor.runtime.server.decoder_request import DecoderCall, read_decoder_call
from tersor.runtime.server.decoder_response import DecoderAnswer
from tersor.runtime.server.graph_request import read_tensors, read_text, requested_outputs
from tersor.runtime.server.parameters import FINAL_RESPONSE, read_parameters
from tersor.runtime.server.tensors import ResponseTensors, can_type, is_typed, read_inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderInference:
    """Requests to decoders."""

    bridge: EventBridge
    clock: Clock

    async def infer(
        self, model: ServedDecoder, request: pb.ModelInferRequest, deadline: float | None
    ) -> pb.ModelInferResponse:
        """The whole continuation in one response, streamed or not."""
        call = read_decoder_call(request, model.engine.defaults)
        answer = DecoderAnswer(request, model.version, call, model.tokenizer)
        generation = self._generation(call, deadline)
        async with self.bridge.generation(model.engine, generation, whole=True) as (_, stream):
            answer.take(await stream.batch())
        return answer.response(streamed=False)

    async def stream(
        self, model: ServedDecoder, request: pb.ModelInferRequest, deadline: float | None
    ) -> AsyncIterator[pb.ModelInferResponse]:
        """A response for each step's new text, the last one final; one alone unless `stream`."""
        call = read_decoder_call(request, model.engine.defaults)
        answer = DecoderAnswer(request, model.version, call, model.tokenizer)
        generation = self._generation(call, deadline)
        whole = not call.stream
        async with self.bridge.generation(model.engine, generation, whole=whole) as (_, stream):
            while not answer.complete:
                answer.take(await stream.batch())
                yield answer.response(streamed=True)

    def _generation(self, call: DecoderCall, deadline: float | None) -> GenerationRequest:
        return GenerationRequest(
            prompt=call.prompt,
            sampling=call.sampling,
            deadline=earlier(deadline, call.timeout_seconds, self.clock),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInference:
    """Requests to graphs."""

    clock: Clock

    async def infer(
        self, model: ServedGraph, request: pb.ModelInferRequest, deadline: float | None
    ) -> pb.ModelInferResponse:
        """One pass of the graph."""
        names = requested_outputs(request, model.program)
        limit = earlier(deadline, read_parameters(request).timeout_seconds, self.clock)
        inputs = await self._inputs(model, request)
        outputs = await self._run(model, inputs, limit)
        chosen = {name: outputs[name] for name in names}
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version=model.version, id=request.id
        )
        typed = is_typed(request) and can_type(list(chosen.values()))
        tensors = ResponseTensors(response, typed=typed)
        for name, tensor in chosen.items():
            tensors.add_torch(name, tensor)
        return response

    async def stream(
        self, model: ServedGraph, request: pb.ModelInferRequest, deadline: float | None
    ) -> AsyncIterator[pb.ModelInferResponse]:
        """The one response, marked final."""
        response = await self.infer(model, request, deadline)
        response.parameters[FINAL_RESPONSE].bool_param = True
        yield response

    async def _inputs(
        self, model: ServedGraph, request: pb.ModelInferRequest
    ) -> dict[str, torch.Tensor]:
        received = read_inputs(request)
        texts = read_text(received, model.program)
        if texts is None:
            return read_tensors(received, model.program)
        if sum(map(len, texts)) < LONG_PROMPT:
            return model.encode_text(texts)
        return await asyncio.to_thread(model.encode_text, texts)

    async def _run(
        self, model: ServedGraph, inputs: dict[str, torch.Tensor], deadline: float | None
    ) -> dict[str, torch.Tensor]:
        work = asyncio.wrap_future(model.engine.submit(inputs, deadline=deadline))
        if deadline is None:
            return await work
        try:
            async with asyncio.timeout(max(0.0, deadline - self.clock())):
                return await work
        except TimeoutError:
            raise DeadlineError("The deadline passed before the graph had run.") from None
