"""Claim: at decode batch sizes layouts multiply at the bandwidth of a GPU's memory, ahead of peers.

Per Llama-3-8B shape and batch: microseconds, GB/s of the weights' resident bytes, and their share
of the copy bandwidth measured in the same run. Every launch reads another copy of the weight,
together larger than any L2 cache, and the launches are replayed from a CUDA graph, so that neither
cache nor Python flatters or blurs the figure. Peers (`gpu_peers.py`) in the same run; one that is
missing is left out with a line that says so.

Needs torch and triton alone. `--minutes` bounds the run: what decides most is measured first, and
what there was no time for is counted at the end.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import record
import torch
from gpu_peers import PEERS, SLOW

from tersor.kernels.bench.products import LLAMA_8B, Multiplies, ProductRow, measure_products
from tersor.kernels.bench.samples import samples
from tersor.kernels.bench.timing import cold_copies, copy_bandwidth

MINUTES = 8.0
# A decode of one sequence, of a few and of many, then what lies between; peers that search wait.
FIRST, THEN = (1, 8, 32), (2, 4, 16, 64, 128)
Build = Callable[[int, int, torch.device], Multiplies]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Weights of one form and shape, and the batches to multiply them by."""

    shape: str
    form: str
    batches: Sequence[int]


def forms() -> Mapping[str, Build]:
    """cuBLAS, then ours with the peers of each right behind."""
    tersor: dict[str, Build] = {f"tersor {sample.label}": sample.build for sample in samples()}
    tersor.pop("tersor dense")  # is cuBLAS
    return {"cuBLAS bf16": PEERS["cuBLAS bf16"], **tersor, **PEERS}


def tasks() -> Iterator[Task]:
    quick = [form for form in forms() if form not in SLOW]
    for some, batches in ((quick, FIRST), (SLOW, FIRST), (quick, THEN), (SLOW, THEN)):
        for shape in LLAMA_8B:
            for form in some:
                yield Task(shape=shape, form=form, batches=batches)


def measure(task: Task, build: Build, device: torch.device, bandwidth: float) -> list[ProductRow]:
    n, k = LLAMA_8B[task.shape]
    weights = cold_copies(lambda: build(n, k, device), device)
    x = torch.randn(max(task.batches), k, dtype=torch.bfloat16, device=device)
    possible = [batch for batch in task.batches if multiplies(weights[0], x[:batch], task.form)]
    rows = measure_products(
        weights, task.form, task.shape, (n, k), possible, device=device, bandwidth=bandwidth
    )
    return [shown(row) for row in rows]


def multiplies(weight: Multiplies, x: torch.Tensor, form: str) -> bool:
    """Whether it takes so many rows; of ours an error is a defect and ends the run."""
    if form not in PEERS:
        return True
    try:
        weight.matmul(x)
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - of somebody else's code, for any reason
        print(f"  {form} does not multiply {x.shape[0]} rows: {first_line(error)}", flush=True)
        return False
    return True


def shown(row: ProductRow) -> ProductRow:
    print(
        f"  {row.shape:<8} {row.form:<24} M={row.batch:<4} {row.microseconds:8.1f} us "
        f"{row.weight_gb_per_second:7.0f} GB/s {100 * row.share_of_copy_bandwidth:5.1f} %",
        flush=True,
    )
    return row


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120] if text else ''}"


def measured(device: torch.device, seconds: float) -> Iterator[list[dict[str, object]]]:
    deadline = time.monotonic() + seconds
    bandwidth = copy_bandwidth(device)
    copy = round(bandwidth / 1e9, 1)
    print(f"copy bandwidth {copy:.0f} GB/s", flush=True)
    builds, missing, skipped = forms(), set[str](), 0
    for task in tasks():
        if task.form in missing:
            continue
        if time.monotonic() > deadline:
            skipped += 1
            continue
        try:
            rows = measure(task, builds[task.form], device, bandwidth)
            yield [asdict(row) | {"copy_gb_per_second": copy} for row in rows]
        except Exception as error:
            if task.form not in PEERS:
                raise
            missing.add(task.form)
            print(f"  {task.form} is left out: {first_line(error)}", flush=True)
    if skipped:
        print(f"no time was left for {skipped} pairs of form and shape: give it more --minutes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="when to stop measuring")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_matmul.py needs a CUDA device; torch sees none", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.inference_mode():
        path = record.write_groups(
            "gpu_matmul", measured(device, 60 * options.minutes), packages=("triton", "gemlite")
        )
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
