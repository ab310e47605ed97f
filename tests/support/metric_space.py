"""Every sample the server can expose, read off the real registry: names, labels, label values."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

from prometheus_client import CollectorRegistry

from tersor.runtime.metrics.metrics import Metrics, ModelFacts

MODEL = "pico"


@cache
def samples() -> dict[str, dict[str, frozenset[str]]]:
    """Sample name -> label -> the values it takes once every observer of one model is bound."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    facts = ModelFacts(
        version="1",
        program="decoder",
        recipe="int4",
        layouts=("dense", "int4"),
        digest="0",
        producer="tersor 0",
        bundle_bytes=1,
        certificate={"bits_per_byte": 1.0},
    )
    metrics.process(version="0", torch="2", device="cpu", start=0.0)
    metrics.add_model(MODEL, facts)
    metrics.memory_budget(None)
    metrics.engine_observer(MODEL)
    metrics.graph_observer(MODEL)
    metrics.weight_observer(MODEL)
    metrics.rpc(MODEL, "ModelInfer").finished("OK", 0.1)
    found: dict[str, dict[str, set[str]]] = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = found.setdefault(sample.name, defaultdict(set))
            for label, value in sample.labels.items():
                labels[label].add(value)
    return {
        name: {label: frozenset(values) for label, values in labels.items()}
        for name, labels in found.items()
    }
