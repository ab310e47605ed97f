"""Around every call of our own services: errors to statuses, duration and count to the metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any, Never, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from tersor.runtime.errors import InvalidRequestError
from tersor.runtime.metrics import Metrics
from tersor.runtime.server.deadlines import Clock, Context
from tersor.runtime.server.status import RpcStatus, status_of
from tersor.runtime.server.stream_session import StreamFailedError

# Any: one wrapper serves every method, whatever its messages.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Parse: TypeAlias = Callable[[bytes], Any]


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of `services`; those of other services pass through.

    The wrappers parse requests themselves: gRPC would answer bytes that do not parse with a Python
    class name, and log a traceback for each.
    """

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
        parse, serializer = handler.request_deserializer, handler.response_serializer
        assert parse is not None  # generated stubs always have one
        if handler.request_streaming:
            behavior = self._stream_stream(handler.stream_stream, parse)
            return grpc.stream_stream_rpc_method_handler(behavior, response_serializer=serializer)
        if handler.response_streaming:
            behavior = self._unary_stream(handler.unary_stream, parse, method)
            return grpc.unary_stream_rpc_method_handler(behavior, response_serializer=serializer)
        behavior = self._unary_unary(handler.unary_unary, parse, method)
        return grpc.unary_unary_rpc_method_handler(behavior, response_serializer=serializer)

    # Calls are counted before they are answered, so that a client that has its answer finds its
    # call in the metrics.

    def _unary_unary(self, behavior: Any, parse: Parse, method: str) -> Any:
        async def call(message: bytes, context: Context) -> Any:
            start, model = self._clock(), ""
            try:
                request = _parsed(parse, message)
                model = _model_of(request)
                response = await behavior(request, context)
            except asyncio.CancelledError:
                self._finished(model, method, _cancelled_code(context), start)
                raise
            except Exception as error:  # noqa: BLE001 - every error becomes a status
                status = status_of(error, self._log)
                self._finished(model, method, status.code, start)
                await _abort(context, status)
            self._finished(model, method, grpc.StatusCode.OK, start)
            return response

        return call

    # The wrappers of streams write to the call rather than yield: a cancelled call then raises
    # inside them and closes the generator behind them at once, not when it is collected.

    def _unary_stream(self, behavior: Any, parse: Parse, method: str) -> Any:
        async def call(message: bytes, context: Context) -> None:
            start, model = self._clock(), ""
            try:
                request = _parsed(parse, message)
                model = _model_of(request)
                await _write_all(behavior(request, context), context)
            except asyncio.CancelledError:
                self._finished(model, method, _cancelled_code(context), start)
                raise
            except Exception as error:  # noqa: BLE001 - every error becomes a status
                status = status_of(error, self._log)
                self._finished(model, method, status.code, start)
                await _abort(context, status)
            self._finished(model, method, grpc.StatusCode.OK, start)

        return call

    def _stream_stream(self, behavior: Any, parse: Parse) -> Any:
        """The session counts each request itself: a stream may live for days."""

        async def call(messages: AsyncIterator[bytes], context: Context) -> None:
            requests = (_parsed(parse, message) async for message in messages)
            try:
                await _write_all(behavior(requests, context), context)
            except StreamFailedError as error:
                await _abort(context, error.status)
            except Exception as error:  # noqa: BLE001 - every error becomes a status
                await _abort(context, status_of(error, self._log))

        return call

    def _finished(self, model: str, method: str, code: grpc.StatusCode, start: float) -> None:
        self._metrics.rpc(model, method).finished(code.name, self._clock() - start)


def _parsed(parse: Parse, message: bytes) -> Any:
    try:
        return parse(message)
    except DecodeError as error:
        raise InvalidRequestError(
            f"The request's {len(message)} bytes do not parse as its protobuf message."
        ) from error


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
