"""Prometheus metrics of the process, all on one injected registry."""

from tersor.runtime.metrics.metrics import Metrics
from tersor.runtime.metrics.observers import (
    EngineMetrics,
    GraphMetrics,
    RpcMetrics,
    WeightMetrics,
)

__all__ = ["EngineMetrics", "GraphMetrics", "Metrics", "RpcMetrics", "WeightMetrics"]
