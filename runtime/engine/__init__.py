"""The decoder engine: continuous batching over a paged KV cache."""

from tersor.runtime.engine.types import (
    Event,
    EventSink,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TextDelta,
    TokenLogprobs,
    Usage,
)

__all__ = [
    "Event",
    "EventSink",
    "Failed",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "SamplingParams",
    "TextDelta",
    "TokenLogprobs",
    "Usage",
]
