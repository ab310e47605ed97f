"""Claim: on one CPU thread int8 and int4 multiply a decode step's rows faster than bf16 and fp32,
and PACKED_MAX_ROWS, the switch to decoding once, stands where both ways cost the same.

F.linear in both dtypes runs in the same process and alternates with ours, so that a noisy neighbour
hurts all alike. `path` names the algorithm: each quantized layout is measured on both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from unittest import mock

import record
import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.int4 import Int4Layout
from tersor.kernels.int4 import cpu as int4_cpu
from tersor.kernels.int8 import Int8Layout
from tersor.kernels.int8 import cpu as int8_cpu

CPU = torch.device("cpu")
SHAPES = ((1024, 1024), (4096, 4096), (14336, 4096))
BATCHES = (1, 4, 16, 32, 48, 64, 96, 128, 256)
GROUP = 64
ROUNDS = 5
ALWAYS, NEVER = 1 << 30, 0


def quantized(n: int, k: int) -> tuple[Int8Layout, Int4Layout]:
    """Random weights: speed does not depend on their values."""
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    scales = torch.rand(n, -(-k // GROUP)).to(torch.bfloat16)
    eight = {"codes": codes, "scales": scales[:, 0].contiguous()}
    four = {"codes": codes.to(torch.uint8) & 15, "scales": scales}
    params = {"group": GROUP, "symmetric": True}
    return (
        Int8Layout.from_planes(eight, (n, k), torch.bfloat16, {}, CPU),
        Int4Layout.from_planes(four, (n, k), torch.bfloat16, params, CPU),
    )


def contenders(n: int, k: int) -> Mapping[tuple[str, str], Callable[[Tensor], Tensor]]:
    """The matmuls by (layout, path); each takes x in fp32."""
    eight, four = quantized(n, k)
    wide = torch.randn(n, k)
    narrow = wide.to(torch.bfloat16)

    def on_path(
        cpu: object, rows: int, layout: Int8Layout | Int4Layout
    ) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with mock.patch.object(cpu, "PACKED_MAX_ROWS", rows):
                return layout.matmul(x)

        return run

    return {
        ("fp32", "F.linear"): lambda x: F.linear(x, wide),
        ("bf16", "F.linear"): lambda x: F.linear(x.to(torch.bfloat16), narrow),
        ("int8", "packed"): on_path(int8_cpu, ALWAYS, eight),
        ("int8", "decoded"): on_path(int8_cpu, NEVER, eight),
        ("int4", "packed"): on_path(int4_cpu, ALWAYS, four),
        ("int4", "decoded"): on_path(int4_cpu, NEVER, four),
    }


def measure(n: int, k: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    matmuls = contenders(n, k)
    for m in BATCHES:
        x = torch.randn(m, k)
        seconds: dict[tuple[str, str], list[float]] = {name: [] for name in matmuls}
        for _ in range(ROUNDS):
            for name, matmul in matmuls.items():
                start = time.perf_counter()
                matmul(x)
                seconds[name].append(time.perf_counter() - start)
        best = {name: statistics.quantiles(samples, n=4)[0] for name, samples in seconds.items()}
        for (layout, path), time_taken in best.items():
            rows.append(
                {
                    "n": n,
                    "k": k,
                    "m": m,
                    "layout": layout,
                    "path": path,
                    "milliseconds": round(time_taken * 1e3, 3),
                    "speedup_over_fp32": round(best["fp32", "F.linear"] / time_taken, 2),
                    "threads": torch.get_num_threads(),
                }
            )
        print(
            f"{n} x {k}, {m:3} rows: "
            + ", ".join(
                f"{layout} {path} {best[layout, path] * 1e3:.2f} ms" for layout, path in best
            )
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = [row for n, k in SHAPES for row in measure(n, k)]
    print(f"wrote {record.write('cpu_matmul', rows)}")


if __name__ == "__main__":
    main()
