"""The deadline of a request: the call's own, or the `timeout` parameter, whichever comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import grpc

Clock = Callable[[], float]
# A call of whatever messages; gRPC's own classes cannot be subscripted at run time.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def call_deadline(context: Context, clock: Clock) -> float | None:
    """When the client stops waiting for this call, on `clock`; None: never."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else clock() + remaining


def earlier(deadline: float | None, timeout_seconds: float | None, clock: Clock) -> float | None:
    """The earlier of `deadline` and `timeout_seconds` from now."""
    if timeout_seconds is None:
        return deadline
    limit = clock() + timeout_seconds
    return limit if deadline is None else min(deadline, limit)
