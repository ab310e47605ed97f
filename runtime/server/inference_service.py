"""inference.GRPCInferenceService: translates, and nothing else."""
# ruff: noqa: N802 - the methods have the protocol's names

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import metadata

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.protos.inference import grpc_service_pb2_grpc as pb_grpc
from tersor.runtime.server import describe
from tersor.runtime.server.admission import Admission
from tersor.runtime.server.deadlines import Clock, Context, call_deadline
from tersor.runtime.server.inference_models import DecoderInference, GraphInference
from tersor.runtime.server.models import Models, is_decoder
from tersor.runtime.server.stream_session import SessionContext, StreamSession


class InferenceService(pb_grpc.GRPCInferenceServiceServicer):
    """The Open Inference Protocol with Triton's extensions."""

    def __init__(
        self,
        *,
        models: Models,
        admission: Admission,
        decoders: DecoderInference,
        graphs: GraphInference,
        session: SessionContext,
        clock: Clock,
        batch_delay_seconds: float,
    ) -> None:
        self._models = models
        self._admission = admission
        self._decoders = decoders
        self._graphs = graphs
        self._session = session
        self._clock = clock
        self._batch_delay_seconds = batch_delay_seconds

    async def ServerLive(
        self, _request: pb.ServerLiveRequest, _context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, _request: pb.ServerReadyRequest, _context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._admission.accepting and self._models.ready)

    async def ModelReady(
        self, request: pb.ModelReadyRequest, _context: Context
    ) -> pb.ModelReadyResponse:
        model = self._models.get(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._admission.accepting and model.ready)

    async def ServerMetadata(
        self, _request: pb.ServerMetadataRequest, _context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=describe.SERVER_NAME,
            version=metadata.version("tersor"),
            extensions=describe.EXTENSIONS,
        )

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, _context: Context
    ) -> pb.ModelMetadataResponse:
        return describe.metadata(self._models.get(request.name, request.version))

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, _context: Context
    ) -> pb.ModelConfigResponse:
        model = self._models.get(request.name, request.version)
        return pb.ModelConfigResponse(config=describe.config(model, self._batch_delay_seconds))

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        with self._admission.request():
            deadline = call_deadline(context, self._clock)
            model = self._models.get(request.model_name, request.model_version)
            if is_decoder(model):
                return await self._decoders.infer(model, request, deadline)
            return await self._graphs.infer(model, request, deadline)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        session = StreamSession(self._session, self._answers, context)
        async for response in session.run(request_iterator):
            yield response

    def _answers(
        self, request: pb.ModelInferRequest, deadline: float | None
    ) -> AsyncIterator[pb.ModelInferResponse]:
        model = self._models.get(request.model_name, request.model_version)
        if is_decoder(model):
            return self._decoders.stream(model, request, deadline)
        return self._graphs.stream(model, request, deadline)
