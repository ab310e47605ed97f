"""A graph program and a runner without torch.export: row-wise doubling, with gates and failures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tersor.bundle.program import GraphProgram, TensorSpec
from tersor.models.errors import InvalidInputError, RunAbandonedError
from tersor.runtime.errors import ServingError


def row_program(*, max_batch_size: int = 8, batched: bool = True) -> GraphProgram:
    """x f32 [batch, columns], n i64 [batch] -> y f32 [batch, columns] = 2 x + n."""
    batch = -1 if batched else 1
    return GraphProgram(
        graph_asset="graph.json",
        schema_version=(8, 0),
        torch_version="2.13.0",
        inputs=(
            TensorSpec(name="x", dtype="f32", shape=(batch, -1)),
            TensorSpec(name="n", dtype="i64", shape=(batch,)),
        ),
        outputs=(TensorSpec(name="y", dtype="f32", shape=(batch, -1)),),
        batch_dim_dynamic=batched,
        max_batch_size=max_batch_size,
    )


def row_inputs(value: float, *, rows: int = 1, columns: int = 3, n: int = 0) -> dict[str, Tensor]:
    return {"x": torch.full((rows, columns), value), "n": torch.full((rows,), n)}


class RowRunner:
    """Computes `row_program`. A negative n is an invalid input, n = 13 RuntimeError."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []  # rows of every run begun
        self.during: Callable[[int], object] = lambda rows: rows  # called in a run, with its rows
        self.failure: ServingError | None = None

    def run(
        self, inputs: Mapping[str, Tensor], *, abandoned: Callable[[], bool] | None = None
    ) -> dict[str, Tensor]:
        x, n = inputs["x"], inputs["n"]
        self.batches.append(x.shape[0])
        assert self.gate.wait(20)
        self.during(x.shape[0])
        if abandoned is not None and abandoned():
            raise RunAbandonedError("nobody waits")
        if self.failure is not None:
            raise self.failure
        if (n < 0).any():
            raise InvalidInputError("an index lies outside the table it looks up")
        if (n == 13).any():
            raise RuntimeError("a defect")
        return {"y": 2 * x + n[:, None]}


class RecordingGraphObserver:
    """Keeps what a graph engine reports."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.runs: list[tuple[int, int]] = []  # rows, requests
        self.failures: list[str] = []
        self.depth = (0, 0)

    def queued(self, seconds: float) -> None:
        self.waits.append(seconds)

    def ran(self, seconds: float, *, rows: int, requests: int) -> None:
        assert seconds >= 0
        self.runs.append((rows, requests))

    def failed(self, reason: str) -> None:
        self.failures.append(reason)

    def queue_depth(self, waiting: int, running: int) -> None:
        self.depth = (waiting, running)
