"""What an exception of a forward pass means to the requests that were in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tersor.bundle.errors import BundleError
from tersor.models.errors import ModelError
from tersor.runtime.errors import (
    InternalError,
    ModelLoadError,
    OutOfMemoryError,
    ServingError,
)


@dataclass(frozen=True, slots=True)
class PassFailure:
    """A failed pass."""

    kind: type[ServingError]
    message: str
    weights: bool  # no request of this model can be computed now, whoever was in the pass

    def error(self) -> ServingError:
        """A new error: requests must not share one, whose traceback changes."""
        return self.kind(self.message)


def pass_failure(model: str, cause: Exception) -> PassFailure:
    """Tells weights that cannot be loaded from everything else."""
    if isinstance(cause, ServingError):  # residency says what it means
        return PassFailure(type(cause), str(cause), weights=True)
    if isinstance(cause, BundleError | ModelError):
        message = f"the weights of model {model} could not be loaded: {cause}"
        return PassFailure(ModelLoadError, message, weights=True)
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        message = (
            f"model {model} ran out of memory during a pass; lower max_batch_size, "
            f"prefill_chunk_tokens or kv_cache_bytes ({cause})"
        )
        return PassFailure(OutOfMemoryError, message, weights=False)
    message = f"model {model}: a pass failed with {type(cause).__name__}; the log has the details"
    return PassFailure(InternalError, message, weights=False)
