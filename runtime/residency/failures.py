"""What a failed load means to the requests that waited for it."""

from __future__ import annotations

import torch

from tersor.bundle.errors import BundleCancelledError
from tersor.runtime.errors import (
    ModelLoadError,
    OutOfMemoryError,
    ServingError,
    ShuttingDownError,
)


def serving_error(model: str, group: str, cause: Exception) -> ServingError:
    """A new error for one waiter: threads must not share an exception, whose traceback changes."""
    where = f"model {model}: group {group}"
    if isinstance(cause, ShuttingDownError | BundleCancelledError):
        return ShuttingDownError(f"{where} was not loaded: the model is being unloaded")
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        return OutOfMemoryError(
            f"{where} does not fit into the memory that is free; lower the memory budget "
            f"so that other groups leave first ({cause})"
        )
    return ModelLoadError(f"{where} could not be loaded: {cause}")
