"""One ModelStreamInfer call: many requests at once on one stream, their answers interleaved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import grpc

from tersor.protos.inference import grpc_service_pb2 as pb
from tersor.runtime.metrics import Metrics
from tersor.runtime.server.admission import Admission
from tersor.runtime.server.deadlines import Clock, Context, call_deadline
from tersor.runtime.server.parameters import FINAL_RESPONSE
from tersor.runtime.server.status import RpcStatus, status_of

METHOD: Final = "ModelStreamInfer"
MAX_REQUESTS: Final = 1024  # in progress on one stream
MAX_UNSENT_RESPONSES: Final = 64  # of one stream
GRPC_ERROR_KEY: Final = "triton_grpc_error"  # call metadata: end the stream with a status on error

Answers = Callable[[pb.ModelInferRequest, float | None], AsyncIterator[pb.ModelInferResponse]]


class StreamFailedError(Exception):
    """The client asked that one failed request end the whole stream."""

    def __init__(self, status: RpcStatus) -> None:
        super().__init__(status.message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionContext:
    """What every stream of a server shares."""

    admission: Admission
    metrics: Metrics
    clock: Clock
    log: logging.Logger


class StreamSession:
    """Answers the requests of one stream concurrently; a failed one leaves the others alone."""

    def __init__(self, shared: SessionContext, answers: Answers, context: Context) -> None:
        self._shared = shared
        self._answers = answers
        self._context = context
        # Bounded, as are the requests behind it: a client that does not read its answers is not
        # read from either.
        self._outgoing: asyncio.Queue[pb.ModelStreamInferResponse | Exception | None] = (
            asyncio.Queue(MAX_UNSENT_RESPONSES)
        )
        self._places = asyncio.Semaphore(MAX_REQUESTS)
        self._tasks: set[asyncio.Task[None]] = set()
        metadata = context.invocation_metadata() or ()
        self._fail_stream = any(
            key == GRPC_ERROR_KEY and value in {"true", b"true"} for key, value in metadata
        )

    async def run(
        self, requests: AsyncIterator[pb.ModelInferRequest]
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Every response of the stream, as they come.

        Raises:
            StreamFailedError: a request failed, and the client chose that this ends the stream.
        """
        reader = asyncio.create_task(self._read(requests))
        try:
            while (item := await self._outgoing.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            reader.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(reader, *self._tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        """Starts a task for each request; when all have ended, ends the stream."""
        end: Exception | None = None
        try:
            async for request in requests:
                await self._places.acquire()
                task = asyncio.create_task(self._answer(request))
                self._tasks.add(task)
                task.add_done_callback(self._done)
        except Exception as error:  # noqa: BLE001 - raised to the call, by `run`
            end = error
        while self._tasks and end is None:
            await asyncio.wait(self._tasks)
        await self._outgoing.put(end)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()

    async def _answer(self, request: pb.ModelInferRequest) -> None:
        start = self._shared.clock()
        code = grpc.StatusCode.CANCELLED
        try:
            with self._shared.admission.request():
                deadline = call_deadline(self._context, self._shared.clock)
                async with aclosing(self._answers(request, deadline)) as responses:  # type: ignore[type-var]  # an async generator, typed as the iterator it is used as
                    async for response in responses:
                        await self._outgoing.put(
                            pb.ModelStreamInferResponse(infer_response=response)
                        )
            code = grpc.StatusCode.OK
        except Exception as error:  # noqa: BLE001 - the stream outlives any failed request
            status = status_of(error, self._shared.log)
            code = status.code
            await self._outgoing.put(self._failure(request, status))
        finally:
            rpc = self._shared.metrics.rpc(request.model_name, METHOD)
            rpc.finished(code.name, self._shared.clock() - start)

    def _failure(
        self, request: pb.ModelInferRequest, status: RpcStatus
    ) -> pb.ModelStreamInferResponse | StreamFailedError:
        if self._fail_stream:
            return StreamFailedError(status)
        response = pb.ModelStreamInferResponse(error_message=status.message)
        response.infer_response.id = request.id
        response.infer_response.model_name = request.model_name
        response.infer_response.parameters[FINAL_RESPONSE].bool_param = True
        return response
