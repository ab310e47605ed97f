"""Claim: at decode batch sizes float12, int8 and int4 matmuls run at the GPU's memory bandwidth.

Per Llama-3-8B shape and batch: microseconds, GB/s of the weights' resident bytes, and their share
of the copy bandwidth measured in the same run; cuBLAS bf16 beside them. Every launch reads another
copy of the weight, together larger than any L2 cache, and the launches are replayed from a CUDA
graph, so that neither cache nor Python flatters or blurs the figure. Needs torch and triton alone.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import record
import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.dense import DenseLayout
from tersor.kernels.float12 import Float12Layout
from tersor.kernels.int4 import Int4Layout
from tersor.kernels.int8 import Int8Layout
from tersor.kernels.layout import Layout

SHAPES = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "lm_head": (128256, 4096),
}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
COLD_BYTES = 256 << 20  # several times the 50 MB L2 of an H200
REPLAYS = 20
Build = Callable[[int, int], Layout]


def dense(n: int, k: int) -> Layout:
    values = torch.randn(n, k, dtype=torch.bfloat16)
    return DenseLayout.from_planes({"values": values}, (n, k), torch.bfloat16, {}, device())


def float12(n: int, k: int) -> Layout:
    values = torch.randn(n, k, dtype=torch.bfloat16)
    return Float12Layout.from_planes({"values": values}, (n, k), torch.bfloat16, {}, device())


def int8(n: int, k: int) -> Layout:
    planes = {
        "codes": torch.randint(-127, 128, (n, k), dtype=torch.int8),
        "scales": torch.rand(n).to(torch.bfloat16),
    }
    return Int8Layout.from_planes(planes, (n, k), torch.bfloat16, {}, device())


def int4(group: int, *, symmetric: bool) -> Build:
    def build(n: int, k: int) -> Layout:
        groups = 1 if group == 0 else k // group
        planes = {
            "codes": torch.randint(0, 16, (n, k), dtype=torch.uint8),
            "scales": torch.rand(n, groups).to(torch.bfloat16),
        }
        if not symmetric:
            planes["zeros"] = torch.randint(0, 16, (n, groups), dtype=torch.uint8)
        params = {"group": group, "symmetric": symmetric}
        return Int4Layout.from_planes(planes, (n, k), torch.bfloat16, params, device())

    return build


FORMS: dict[str, Build] = {
    "bf16 cuBLAS": dense,
    "float12": float12,
    "int8 per row": int8,
    "int4 per row": int4(0, symmetric=True),
    "int4 g128": int4(128, symmetric=True),
    "int4 g32 zeros": int4(32, symmetric=False),
}


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def graph_seconds(launches: Callable[[], object]) -> float:
    """Median time of one replay of `launches` captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launches()  # compiles, and lets cuBLAS allocate its workspace outside the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launches()
    samples: list[float] = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3)
    return statistics.median(samples)


def copy_bandwidth() -> float:
    """Bytes per second read and written by a large device copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_seconds(lambda: target.copy_(source))


def copies(build: Build, n: int, k: int) -> list[Layout]:
    """Enough equal weights that one pass over them evicts any cache."""
    first = build(n, k)
    return [first] + [build(n, k) for _ in range(COLD_BYTES // first.resident_bytes)]


def multiply(weights: list[Layout], x: Tensor) -> Callable[[], object]:
    if isinstance(weights[0], DenseLayout):
        plain = [weight.dense() for weight in weights]
        return lambda: [F.linear(x, weight) for weight in plain]
    return lambda: [weight.matmul(x) for weight in weights]


def measure(shape: str, form: str, bandwidth: float) -> list[dict[str, object]]:
    n, k = SHAPES[shape]
    weights = copies(FORMS[form], n, k)
    rows: list[dict[str, object]] = []
    for batch in BATCHES:
        x = torch.randn(batch, k, dtype=torch.bfloat16, device=device())
        seconds = graph_seconds(multiply(weights, x)) / len(weights)
        speed = weights[0].resident_bytes / seconds
        print(
            f"  {shape:<8} {form:<15} M={batch:<4} {1e6 * seconds:8.1f} us "
            f"{speed / 1e9:7.0f} GB/s {100 * speed / bandwidth:5.1f} %",
            flush=True,
        )
        rows.append(
            {
                "shape": shape,
                "n": n,
                "k": k,
                "form": form,
                "batch": batch,
                "microseconds": round(1e6 * seconds, 2),
                "weight_gb_per_second": round(speed / 1e9, 1),
                "share_of_copy_bandwidth": round(speed / bandwidth, 4),
                "copy_gb_per_second": round(bandwidth / 1e9, 1),
            }
        )
    return rows


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_matmul.py needs a CUDA device; torch sees none", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    with torch.inference_mode():
        bandwidth = copy_bandwidth()
        print(f"copy bandwidth {bandwidth / 1e9:.0f} GB/s")
        rows = [
            row for shape in SHAPES for form in FORMS for row in measure(shape, form, bandwidth)
        ]
    print(f"wrote {record.write('gpu_matmul', rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
