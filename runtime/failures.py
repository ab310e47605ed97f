"""What an exception means to the requests it ends; defects go to the log under an id."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

import torch

from tersor.bundle.errors import BundleCancelledError, BundleError, BundleLimitError
from tersor.kernels.errors import LayoutError, TuningError
from tersor.models.errors import InvalidInputError, WeightError
from tersor.runtime.errors import (
    InternalError,
    InvalidRequestError,
    ModelLoadError,
    OutOfMemoryError,
    ServingError,
    ShuttingDownError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why requests end without an answer."""

    kind: type[ServingError]
    message: str
    cause: Exception

    def error(self) -> ServingError:
        """A new error: threads and requests must not share one, whose traceback changes."""
        error = self.kind(self.message)
        error.__cause__ = self.cause
        return error


def incident(what: str, cause: BaseException | None, log: logging.Logger) -> str:
    """Logs a defect of ours whole; returns what a client hears of it."""
    identity = secrets.token_hex(4)
    log.error("internal error %s: %s", identity, what, exc_info=cause)
    return f"Internal error {identity}: {what}; the server's log has the details under this id"


def concerns_weights(cause: Exception) -> bool:
    """Whether no request of the model can be computed now, whatever its inputs."""
    return isinstance(cause, ServingError | WeightError | BundleError | TuningError)


def run_failure(where: str, cause: Exception, *, when_full: str, log: logging.Logger) -> Failure:
    """What `cause`, raised by a run of a model, means.

    Args:
        where: "model name".
        cause: what the run raised.
        when_full: what to do if memory ended.
        log: where a defect goes.
    """
    kind, message = _run_error(where, cause, when_full)
    if message is None:
        message = incident(f"{where}: a run failed with {type(cause).__name__}", cause, log)
    return Failure(kind=kind, message=message, cause=cause)


def _run_error(
    where: str, cause: Exception, when_full: str
) -> tuple[type[ServingError], str | None]:
    if isinstance(cause, ServingError):  # residency says what it means, in a plain message
        return type(cause), str(cause)
    if isinstance(cause, BundleError | WeightError):
        return ModelLoadError, f"{where}: the weights could not be loaded: {cause}"
    if isinstance(cause, TuningError):
        return ModelLoadError, f"{where}: {cause}"
    if isinstance(cause, InvalidInputError):
        return InvalidRequestError, f"{where}: {cause}"
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        return OutOfMemoryError, f"{where} ran out of memory; {when_full} ({cause})"
    return InternalError, None


def load_failure(where: str, cause: Exception, log: logging.Logger) -> Failure:
    """What `cause`, raised while a group was loaded, means; `where` is "model name: group name"."""
    if isinstance(cause, ShuttingDownError | BundleCancelledError):
        kind: type[ServingError] = ShuttingDownError
        message = f"{where} was not loaded: the model is being unloaded"
    elif isinstance(cause, torch.OutOfMemoryError | MemoryError | BundleLimitError):
        kind = OutOfMemoryError
        message = (
            f"{where} does not fit into the memory that is free; lower the memory budget "
            f"so that other groups leave first ({cause})"
        )
    elif isinstance(cause, BundleError | WeightError | LayoutError | OSError):
        kind, message = ModelLoadError, f"{where} could not be loaded: {cause}"
    else:
        kind = InternalError
        message = incident(f"{where}: the load failed with {type(cause).__name__}", cause, log)
    return Failure(kind=kind, message=message, cause=cause)
