"""What an exception of a run means to the requests that were in it."""

from __future__ import annotations

import torch

from tersor.models.errors import InvalidInputError, WeightError
from tersor.runtime.errors import (
    InternalError,
    InvalidRequestError,
    ModelLoadError,
    OutOfMemoryError,
    ServingError,
)


def concerns_weights(cause: Exception) -> bool:
    """Whether no request of the model can be computed now, whatever its inputs."""
    return isinstance(cause, ServingError | WeightError)


def run_error(model: str, cause: Exception) -> ServingError:
    """A new error for one request: threads must not share one, whose traceback changes."""
    if isinstance(cause, ServingError):  # residency says what it means, in a plain message
        return type(cause)(str(cause))
    if isinstance(cause, WeightError):
        return ModelLoadError(f"model {model}: {cause}")
    if isinstance(cause, InvalidInputError):
        return InvalidRequestError(f"model {model}: {cause}")
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        return OutOfMemoryError(f"model {model} ran out of memory; send fewer rows ({cause})")
    return InternalError(f"model {model}: the run failed; details are in the log")
