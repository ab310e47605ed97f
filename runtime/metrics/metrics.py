"""The process's metrics: declares every family once and hands out per-model views."""

from __future__ import annotations

import platform
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector

from tersor.runtime.metrics.families import (
    CacheFamilies,
    GenerationFamilies,
    GraphFamilies,
    ModelFamilies,
    RequestFamilies,
    WeightFamilies,
)
from tersor.runtime.metrics.observers import (
    EngineMetrics,
    GraphMetrics,
    RpcMetrics,
    WeightMetrics,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What `tersor_model_info` and its neighbours say of a bundle."""

    version: str
    program: str  # "decoder" or "graph"
    recipe: str
    layouts: tuple[str, ...]
    digest: str
    producer: str
    bundle_bytes: int
    certificate: Mapping[str, float] | None  # measure -> value; None: the bundle has none


class Metrics:
    """Every metric of the process on `registry`, all of them present from the start.

    `model` labels are bounded by `add_model`: a call for any other name is counted under "".
    Thread-safe.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = RequestFamilies(registry)
        self._generation = GenerationFamilies(registry)
        self._cache = CacheFamilies(registry)
        self._graph = GraphFamilies(registry)
        self._weights = WeightFamilies(registry)
        self._models = ModelFamilies(registry)
        ProcessCollector(registry=registry)  # CPU, memory, file descriptors under standard names
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._rpcs: dict[tuple[str, str], RpcMetrics] = {}

    def process(self, *, version: str, torch: str, device: str, start: float) -> None:
        """Says once what runs: versions, device, and Unix time of the start."""
        self._models.build.labels(version, torch, platform.python_version(), device).set(1)
        self._models.start.set(start)

    def add_model(self, model: str, facts: ModelFacts) -> None:
        """Makes `model` a label value and describes it."""
        with self._lock:
            self._names.add(model)
        self._models.info.labels(
            model,
            facts.version,
            facts.program,
            facts.recipe,
            ",".join(facts.layouts),
            facts.digest,
            facts.producer,
        ).set(1)
        self._models.bundle_bytes.labels(model).set(facts.bundle_bytes)
        self._models.certificate_info.labels(model).set(facts.certificate is not None)
        for measure, value in (facts.certificate or {}).items():
            self._models.certificate.labels(model, measure).set(value)
        self._models.ready.labels(model).set(0)

    def model_ready(self, model: str, *, ready: bool) -> None:
        """Whether `model` takes requests."""
        self._models.ready.labels(model).set(ready)

    def memory_budget(self, count: int | None) -> None:
        """The budget of resident weights in bytes; None: no limit."""
        self._weights.budget.set(count or 0)

    def engine_observer(self, model: str) -> EngineMetrics:
        """The decoder engine's view."""
        return EngineMetrics(self._requests, self._generation, self._cache, model)

    def graph_observer(self, model: str) -> GraphMetrics:
        """The graph engine's view."""
        return GraphMetrics(self._requests, self._graph, model)

    def weight_observer(self, model: str) -> WeightMetrics:
        """Residency's view."""
        return WeightMetrics(self._weights, model)

    def rpc(self, model: str, method: str) -> RpcMetrics:
        """The server's view of one method; `model` is "" for methods that concern none.

        `method` must be a method of the server's own services, never a client's word.
        """
        with self._lock:
            key = (model if model in self._names else "", method)
            rpc = self._rpcs.get(key)
            if rpc is None:
                rpc = self._rpcs[key] = RpcMetrics(self._requests, *key)
            return rpc
