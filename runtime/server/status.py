"""The one place where an error becomes a gRPC status."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import grpc

from tersor.runtime import errors
from tersor.runtime.failures import incident

RETRY_AFTER_KEY: Final = "retry-after-ms"  # trailing metadata of RESOURCE_EXHAUSTED

STATUS_CODES: Final[Mapping[type[errors.ServingError], grpc.StatusCode]] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownModelError: grpc.StatusCode.NOT_FOUND,
    errors.UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfMemoryError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CancelledRequestError: grpc.StatusCode.CANCELLED,
    errors.ShuttingDownError: grpc.StatusCode.UNAVAILABLE,
    errors.ModelLoadError: grpc.StatusCode.UNAVAILABLE,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcStatus:
    """How a failed call ends."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, str], ...] = ()


def status_of(error: BaseException, log: logging.Logger) -> RpcStatus:
    """The status of `error`; what is no ServingError is logged whole, its id goes to the client."""
    for kind in type(error).__mro__:
        code = STATUS_CODES.get(kind)
        if code is not None:
            return RpcStatus(code=code, message=str(error), trailing=_retry_hint(error))
    message = incident("the request failed", error, log)
    return RpcStatus(code=grpc.StatusCode.INTERNAL, message=message)


def _retry_hint(error: BaseException) -> tuple[tuple[str, str], ...]:
    if not isinstance(error, errors.OverloadedError):
        return ()
    return ((RETRY_AFTER_KEY, str(max(1, round(error.retry_after_seconds * 1000)))),)
