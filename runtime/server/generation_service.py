"""tersor.v1.Generation: translates, and nothing else."""
# ruff: noqa: N802 - the methods have the protocol's names

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from tersor.protos.tersor.v1 import generation_pb2 as pb
from tersor.protos.tersor.v1 import generation_pb2_grpc as pb_grpc
from tersor.runtime.engine.types import GenerationRequest
from tersor.runtime.errors import InvalidRequestError
from tersor.runtime.server.admission import Admission
from tersor.runtime.server.bridge import EventBridge
from tersor.runtime.server.deadlines import Clock, Context, call_deadline
from tersor.runtime.server.generation_messages import (
    GenerationMessages,
    model_info,
    prompt_of,
    sampling_of,
    token_ids_of,
)
from tersor.runtime.server.models import Models

MAX_REQUEST_ID_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationService(pb_grpc.GenerationServicer):
    """Tersor's own typed service."""

    models: Models
    admission: Admission
    bridge: EventBridge
    clock: Clock
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        if len(request.request_id.encode()) > MAX_REQUEST_ID_BYTES:
            raise InvalidRequestError(
                f"request_id has more than {MAX_REQUEST_ID_BYTES} bytes: choose a shorter one."
            )
        with self.admission.request():
            model = self.models.decoder(request.model)
            generation = GenerationRequest(
                prompt=prompt_of(request),
                sampling=sampling_of(request.sampling, model.engine.defaults),
                deadline=call_deadline(context, self.clock),
            )
            messages = GenerationMessages(request.request_id or self.new_id())
            async with self.bridge.generation(model.engine, generation, whole=False) as (_, stream):
                while not messages.complete:
                    for response in messages.take(await stream.batch()):
                        yield response

    async def Tokenize(self, request: pb.TokenizeRequest, _context: Context) -> pb.TokenizeResponse:
        model = self.models.decoder(request.model)
        return pb.TokenizeResponse(token_ids=token_ids_of(request, model))

    async def ModelInfo(
        self, request: pb.ModelInfoRequest, _context: Context
    ) -> pb.ModelInfoResponse:
        return model_info(self.models.get(request.model, ""))
