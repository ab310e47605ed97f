"""Around every call of our own services: errors to statuses, duration and count to the metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any, Never, TypeAlias

import grpc

from tersor.runtime.metrics import Metrics
from tersor.runtime.server.deadlines import Clock, Context
from tersor.runtime.server.status import RpcStatus, status_of
from tersor.runtime.server.stream_session import StreamFailedError

# Any: one wrapper serves every method, whatever its messages.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of `services`; those of other services pass through."""

    def __init__(
        self, services: Collection[str], metrics: Metrics, clock: Clock, log: logging.Logger
    ) -> None:
        self._services = frozenset(services)
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        path: str = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        service, _, method = path.lstrip("/").partition("/")
        if handler is None or service not in self._services:
            return handler
        self._wrapped[path] = self._wrap(handler, method)
        return self._wrapped[path]

    def _wrap(self, handler: Handler, method: str) -> Handler:
        if handler.request_streaming:
            wrapped = grpc.stream_stream_rpc_method_handler(
                self._stream_stream(handler.stream_stream),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        elif handler.response_streaming:
            wrapped = grpc.unary_stream_rpc_method_handler(
                self._unary_stream(handler.unary_stream, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        else:
            wrapped = grpc.unary_unary_rpc_method_handler(
                self._unary_unary(handler.unary_unary, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return wrapped

    def _unary_unary(self, behavior: Any, method: str) -> Any:
        async def call(request: Any, context: Context) -> Any:
            start = self._clock()
            code = grpc.StatusCode.OK
            try:
                return await behavior(request, context)
            except asyncio.CancelledError:
                code = _cancelled_code(context)
                raise
            except Exception as error:  # noqa: BLE001 - every error becomes a status
                status = status_of(error, self._log)
                code = status.code
                await _abort(context, status)
            finally:
                self._finished(request, method, code, start)

        return call

    # The wrappers of streams write to the call rather than yield: a cancelled call then raises
    # inside them and closes the generator behind them at once, not when it is collected.

    def _unary_stream(self, behavior: Any, method: str) -> Any:
        async def call(request: Any, context: Context) -> None:
            start = self._clock()
            code = grpc.StatusCode.OK
            try:
                await _write_all(behavior(request, context), context)
            except asyncio.CancelledError:
                code = _cancelled_code(context)
                raise
            except Exception as error:  # noqa: BLE001 - every error becomes a status
                status = status_of(error, self._log)
                code = status.code
                await _abort(context, status)
            finally:
                self._finished(request, method, code, start)

        return call

    def _stream_stream(self, behavior: Any) -> Any:
        """The session counts each request itself: a stream may live for days."""

        async def call(requests: Any, context: Context) -> None:
            try:
                await _write_all(behavior(requests, context), context)
            except StreamFailedError as error:
                await _abort(context, error.status)
            except Exception as error:  # noqa: BLE001 - every error becomes a status
                await _abort(context, status_of(error, self._log))

        return call

    def _finished(self, request: Any, method: str, code: grpc.StatusCode, start: float) -> None:
        rpc = self._metrics.rpc(_model_of(request), method)
        rpc.finished(code.name, self._clock() - start)


async def _write_all(responses: AsyncGenerator[Any], context: Context) -> None:
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)


def _cancelled_code(context: Context) -> grpc.StatusCode:
    """Why the call was torn down: its deadline passed, or the client went away."""
    remaining: float | None = context.time_remaining()
    expired = remaining is not None and remaining <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED


def _model_of(request: Any) -> str:
    """The model a request names: each protocol has its own field for it."""
    for field in ("model_name", "model", "name"):
        name = getattr(request, field, None)
        if isinstance(name, str):
            return name
    return ""


async def _abort(context: Context, status: RpcStatus) -> Never:
    await context.abort(status.code, status.message, status.trailing)
