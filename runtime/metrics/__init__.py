"""Prometheus metrics of the process, all on one injected registry."""

from tersor.runtime.metrics.metrics import Metrics, ModelFacts
from tersor.runtime.metrics.observers import (
    EngineMetrics,
    GraphMetrics,
    RpcMetrics,
    WeightMetrics,
)

__all__ = ["EngineMetrics", "GraphMetrics", "Metrics", "ModelFacts", "RpcMetrics", "WeightMetrics"]
