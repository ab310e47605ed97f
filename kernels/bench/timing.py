"""Time on a GPU that neither Python nor a cache flatters or blurs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

# Weights that are read between two readings of one: several times the largest L2 cache known when
# the device does not tell (50 MB on an H200).
COLD_BYTES = 256 << 20
COLD_L2 = 4
REPLAYS = 20
Launches = Callable[[], object]


class Resident(Protocol):
    """Something whose bytes a kernel reads."""

    @property
    def resident_bytes(self) -> int:
        """Bytes on the device."""
        ...


R = TypeVar("R", bound=Resident)


def graph_seconds(launches: Launches, *, replays: int = REPLAYS) -> float:
    """Median seconds of one replay of `launches`, captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launches()  # compiles, and lets cuBLAS allocate its workspace outside the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launches()
    samples: list[float] = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3)
    return statistics.median(samples)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second read and written by a large copy within `device`."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_seconds(lambda: target.copy_(source))


def cold_copies(build: Callable[[], R], device: torch.device) -> Sequence[R]:
    """Enough equal weights that one pass over them evicts any cache."""
    first = build()
    cache = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    cold = max(COLD_BYTES, COLD_L2 * cache)
    return [first, *(build() for _ in range(cold // first.resident_bytes))]
