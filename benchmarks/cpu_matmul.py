"""Claim: on one CPU thread int8 and int4 multiply a decode step's rows faster than bf16 and fp32,
and of its paths each layout takes the fastest for so many rows, or says why not.

F.linear in both dtypes runs in the same process and alternates with ours, so that a noisy neighbour
hurts all alike. `path` names the algorithm: each quantized layout is measured on both, and `taken`
says which one it picks. Where another is fastest the loss is printed: up to BATCH_ROWS rows the
packed path is kept, because it alone gives a row the same bits whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import record
import torch

from tersor.kernels.bench.paths import BATCHES, PLAIN, PathRow, choices, measure_paths
from tersor.kernels.bench.samples import Sample
from tersor.kernels.crossover import BATCH_ROWS

SHAPES = ((1024, 1024), (4096, 4096), (14336, 4096))
KINDS = (
    Sample(label="int8", layout="int8"),
    Sample(label="int4 g64", layout="int4", params={"group": 64, "symmetric": True}),
)
NOISE = 0.05  # of a loss that is not worth a word on a shared machine


def measure(n: int, k: int) -> Iterator[dict[str, object]]:
    for paths in measure_paths(KINDS, (n, k), BATCHES):
        times = {(row.form, row.path): row.milliseconds for row in paths}
        print(
            f"{n} x {k}, {paths[0].batch:3} rows: "
            + ", ".join(f"{form} {path} {time:.2f} ms" for (form, path), time in times.items()),
            flush=True,
        )
        for choice in choices(paths):
            if choice.loss > NOISE:
                kept = "kept for its bits" if choice.batch <= BATCH_ROWS else "is the slower one"
                print(
                    f"    {choice.form}: {choice.taken} {kept}, {100 * choice.loss:.0f} % over "
                    f"{choice.fastest}"
                )
        for row in paths:
            yield _record(row, times)


def _record(row: PathRow, times: Mapping[tuple[str, str], float]) -> dict[str, object]:
    return {
        "n": row.n,
        "k": row.k,
        "m": row.batch,
        "layout": row.form,
        "path": row.path,
        "milliseconds": round(row.milliseconds, 3),
        "speedup_over_fp32": round(times["fp32", PLAIN] / row.milliseconds, 2),
        "speedup_over_bf16": round(times["bf16", PLAIN] / row.milliseconds, 2),
        "taken": row.taken,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = [row for n, k in SHAPES for row in measure(n, k)]
    print(f"wrote {record.write('cpu_matmul', rows)}")


if __name__ == "__main__":
    main()
