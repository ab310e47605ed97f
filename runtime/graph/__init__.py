"""Serving graph programs: dynamic batching over requests, and text as an input."""

from tersor.runtime.graph.engine import GraphEngine, GraphObserver, GraphRunner
from tersor.runtime.graph.text import TextEncoder

__all__ = ["GraphEngine", "GraphObserver", "GraphRunner", "TextEncoder"]
