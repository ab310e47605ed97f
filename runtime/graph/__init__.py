"""Serving graph programs: dynamic batching over requests, and text as an input."""

from tersor.runtime.graph.engine import GraphEngine, GraphObserver, GraphRunner

__all__ = ["GraphEngine", "GraphObserver", "GraphRunner"]
