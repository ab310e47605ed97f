"""Errors of the serving runtime; the server maps each to one gRPC status in one place.

ServingError
├── InvalidRequestError     the request itself is wrong                       INVALID_ARGUMENT
├── UnknownModelError       no model, version or tensor of that name          NOT_FOUND
├── UnsupportedError        a known feature this model does not have          UNIMPLEMENTED
├── OverloadedError         the bounded queue is full; carries a retry hint   RESOURCE_EXHAUSTED
├── OutOfMemoryError        KV pages or the memory budget cannot hold it      RESOURCE_EXHAUSTED
├── DeadlineError           the deadline passed before the answer was whole   DEADLINE_EXCEEDED
├── CancelledRequestError   the caller went away                              CANCELLED
├── ShuttingDownError       draining: no new requests                         UNAVAILABLE
├── ModelLoadError          weights could not be loaded                       UNAVAILABLE
└── InternalError           a defect of ours; details are in the log          INTERNAL

ConfigError (a ValueError) stands apart: it is raised before anything is served.
"""


class ConfigError(ValueError):
    """A configuration value is wrong; the message names the key, the value and what is allowed."""


class ServingError(Exception):
    """Root of the serving errors: the message says what, got, expected and what to do."""

    reason: str = "internal"  # bounded label value of tersor_request_failures_total


class InvalidRequestError(ServingError):
    """The request itself is wrong."""

    reason = "invalid_request"


class UnknownModelError(ServingError):
    """There is no model, version or tensor of that name."""

    reason = "unknown_model"


class UnsupportedError(ServingError):
    """A known feature that this model does not have."""

    reason = "unsupported"


class OverloadedError(ServingError):
    """The bounded queue is full."""

    reason = "overloaded"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class OutOfMemoryError(ServingError):
    """KV pages or the memory budget cannot hold the request."""

    reason = "out_of_memory"


class DeadlineError(ServingError):
    """The deadline passed before the answer was whole."""

    reason = "deadline"


class CancelledRequestError(ServingError):
    """The caller went away."""

    reason = "cancelled"


class ShuttingDownError(ServingError):
    """The server is draining."""

    reason = "shutting_down"


class ModelLoadError(ServingError):
    """Weights could not be loaded."""

    reason = "load"


class InternalError(ServingError):
    """A defect of ours."""

    reason = "internal"
