"""One continuation computed in this process, by the very engine that serves."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from tersor.bundle.location import Location
from tersor.runtime.config import EngineConfig, ServerConfig
from tersor.runtime.engine.types import Event, Failed, Finished, GenerationRequest, SamplingParams
from tersor.runtime.errors import UnsupportedError
from tersor.runtime.host import ModelHost, ServedDecoder
from tersor.runtime.metrics import Metrics


class Computing(NamedTuple):
    """Where and in which dtypes, as typed: the configuration checks them."""

    device: str
    activations: str
    kv_cache_dtype: str


def stream(
    bundle: Location, prompt: str, sampling: SamplingParams, computing: Computing
) -> Iterator[str]:
    """Text pieces of one continuation.

    Raises:
        BundleError: the bundle cannot be read.
        UnsupportedError: it is not a decoder.
        ServingError: the request cannot be served.
    """
    config = ServerConfig(
        models=(bundle,),
        device=computing.device,
        activations=computing.activations,  # type: ignore[arg-type]  # ServerConfig checks it
        engine=EngineConfig(
            max_batch_size=1,
            kv_cache_dtype=computing.kv_cache_dtype,  # type: ignore[arg-type]  # and this one
        ),
    )
    # The error that ends this is printed; a server's warnings on the way there would repeat it.
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    host = ModelHost(config, Metrics(CollectorRegistry()))
    try:
        (model,) = host.models.values()
        if not isinstance(model, ServedDecoder):
            raise UnsupportedError(
                f"{bundle} holds a graph, which has no text to continue; "
                "ask it through `tersor serve`"
            )
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        model.engine.submit(GenerationRequest(prompt=prompt, sampling=sampling), events.put)
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, Failed):
                raise event.error
            yield event.text
    finally:
        host.close(0.0)
