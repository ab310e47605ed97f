"""The first run of a model, before any request: whatever is lazy in it happens now."""

from __future__ import annotations

import queue
from typing import Final

import torch
from torch import Tensor

from tersor.bundle.program import GraphProgram
from tersor.models.weights import torch_dtype
from tersor.runtime.engine.types import (
    Event,
    Failed,
    Finished,
    GenerationRequest,
    SamplingParams,
)
from tersor.runtime.host.served import ServedDecoder, ServedGraph, ServedModel

_TEXT: Final = "warm up"


def warm_up(served: ServedModel) -> bool:
    """One small request through the model's engine; False: there is none that is sure to be valid.

    Raises what the request fails with.
    """
    if isinstance(served, ServedDecoder):
        _generate(served)
        return True
    inputs = _inputs(served)
    if inputs is None:
        return False
    served.engine.submit(inputs).result()
    return True


def _generate(served: ServedDecoder) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    request = GenerationRequest(
        prompt=(served.program.bos_token_id or 0,),
        sampling=SamplingParams(max_tokens=2, ignore_eos=True),  # one prefill, one decode step
    )
    served.engine.submit(request, events.put)
    while True:
        event = events.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            return


def _inputs(served: ServedGraph) -> dict[str, Tensor] | None:
    """A text, or zeros if only the batch is dynamic: other dynamic sizes may be constrained."""
    program: GraphProgram = served.program
    if program.text is not None:
        return served.encode_text([_TEXT])
    fixed = 1 if program.batch_dim_dynamic else 0
    if any(-1 in spec.shape[fixed:] for spec in program.inputs):
        return None
    return {
        spec.name: torch.zeros(
            [1 if size == -1 else size for size in spec.shape], dtype=torch_dtype(spec.dtype)
        )
        for spec in program.inputs
    }
