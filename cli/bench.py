"""`tersor bench`: what this machine makes of the kernels."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tersor.bundle.location import parse_location
from tersor.bundle.reader import BundleReader
from tersor.cli.console import print_json, print_table, to_json
from tersor.cli.options import JsonOption
from tersor.cli.signals import stoppable
from tersor.runtime.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from tersor.kernels.bench.kinds import Weights
    from tersor.kernels.bench.paths import Choice, PathRow
    from tersor.kernels.bench.products import ProductRow
    from tersor.kernels.bench.search import Found

MAX_BATCH = 4096
# Both fit the time a person waits: all shapes of an 8 B model would take a CPU minutes.
CPU_SHAPES: Mapping[str, tuple[int, int]] = {
    "1024 x 1024": (1024, 1024),
    "4096 x 4096": (4096, 4096),
}
_GPU_COLUMNS = ("shape", "n", "k", "form", "batch", "us", "GB/s", "% of copy")
_CPU_COLUMNS = ("n", "k", "rows", "form", "path", "ms", "taken")
_CHOICE_COLUMNS = ("n", "k", "rows", "form", "taken", "fastest", "loss %")

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)


@bench.callback()
def _group() -> None:
    """Measure on this machine."""


@bench.command("kernels")
def kernels(
    *,
    bundle: Annotated[
        str | None,
        typer.Option(metavar="BUNDLE", help="Measure this bundle's layouts and shapes."),
    ] = None,
    batches: Annotated[
        str | None, typer.Option(metavar="1,8,64", help="Rows of activations to multiply.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; cuda where there is one.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search the best cuts and write a table of them.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Time for --tune.", min=1)] = 600.0,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Where --tune writes; by default where it is read."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure the matmul of every layout.

    On a GPU: microseconds with the weight read from memory, GB/s, and the share of what a copy
    reaches, beside cuBLAS; by default over the shapes of Llama-3-8B. On a CPU: every path of every
    layout, and which one is taken for how many rows.
    """
    rows = None if batches is None else _batches(batches)
    target = _device(device)
    if target.type != "cuda" and tune:
        raise ConfigError(f"--tune: searches cuts of GPU kernels, got {target}; expected cuda")
    if not tune and output is not None:
        raise ConfigError(f"--output: got {output} without --tune, which alone writes a file")
    weights = _default_weights(target) if bundle is None else _weights_of(bundle)
    with stoppable():
        if tune:
            _tune(weights, target, seconds, output, json=json)
        elif target.type == "cuda":
            _measure_gpu(weights, target, rows, json=json)
        else:
            _measure_cpu(weights, rows, json=json)


def _batches(text: str) -> tuple[int, ...]:
    try:
        batches = tuple(int(part) for part in text.split(","))
    except ValueError:
        batches = ()
    if not batches or not all(1 <= batch <= MAX_BATCH for batch in batches):
        raise ConfigError(f"--batches: got {text!r}, expected numbers from 1 to {MAX_BATCH}: 1,8")
    return tuple(sorted(set(batches)))


def _device(name: str | None) -> torch.device:
    import torch

    count = torch.cuda.device_count()
    try:
        device = torch.device(name or ("cuda" if count else "cpu"))
    except RuntimeError:
        raise ConfigError(f"--device: got {name!r}, expected cpu, cuda or cuda:N") from None
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"--device: got {name!r}, expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        if (device.index or 0) >= count:
            raise ConfigError(f"--device: got {device}, but torch sees {count} CUDA devices here")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def _default_weights(device: torch.device) -> Sequence[Weights]:
    from tersor.kernels.bench.kinds import in_every_layout
    from tersor.kernels.bench.products import LLAMA_8B

    return in_every_layout(LLAMA_8B if device.type == "cuda" else CPU_SHAPES)


def _weights_of(place: str) -> Sequence[Weights]:
    """The kinds of matrices in a bundle."""
    from tersor.kernels.bench.kinds import as_they_are

    with BundleReader.open(parse_location(place)) as reader:
        weights = as_they_are(
            (entry.layout, entry.params, (entry.shape[0], entry.shape[1]))
            for entry in reader.manifest.tensors
            if len(entry.shape) == 2 and min(entry.shape) > 0
        )
    if not weights:
        raise ConfigError(f"--bundle: {place} holds no matrices to multiply by")
    return weights


def _measure_gpu(
    weights: Sequence[Weights],
    device: torch.device,
    batches: Sequence[int] | None,
    *,
    json: bool,
) -> None:
    import torch

    from tersor.kernels.bench.products import BATCHES, copies_of, measure_products
    from tersor.kernels.bench.samples import Sample
    from tersor.kernels.bench.timing import copy_bandwidth

    dense = Sample(label="bf16 cuBLAS", layout="dense")
    rows: list[ProductRow] = []
    with torch.inference_mode():
        bandwidth = copy_bandwidth(device)
        for each in weights:
            for kind in (dense, *(kind for kind in each.kinds if kind.layout != "dense")):
                _progress(f"{each.shape}, {kind.label}")
                copies = copies_of(kind, each.size, device)
                if copies:
                    rows += measure_products(
                        copies,
                        kind.label,
                        each.shape,
                        each.size,
                        batches or BATCHES,
                        device=device,
                        bandwidth=bandwidth,
                    )
    head = _gpu_facts(device) | {"copy_gb_per_second": round(bandwidth / 1e9, 1)}
    if json:
        print_json({**head, "rows": rows})
        return
    typer.echo(
        f"{head['device']}, Triton {head['triton']}; a copy reads and writes "
        f"{head['copy_gb_per_second']:.0f} GB/s.\n"
        "Medians; every launch reads its weight from memory."
    )
    print_table("", _GPU_COLUMNS, [_product_cells(row) for row in rows])


def _product_cells(row: ProductRow) -> tuple[str | int, ...]:
    return (
        row.shape, row.n, row.k, row.form, row.batch, f"{row.microseconds:9.1f}",
        f"{row.weight_gb_per_second:7.0f}", f"{100 * row.share_of_copy_bandwidth:6.1f}",
    )  # fmt: skip


def _measure_cpu(weights: Sequence[Weights], batches: Sequence[int] | None, *, json: bool) -> None:
    import torch

    from tersor.kernels.bench.paths import BATCHES, choices, measure_paths

    rows: list[PathRow] = []
    chosen: list[Choice] = []
    with torch.inference_mode():
        for each in weights:
            _progress(each.shape)
            for some in measure_paths(each.kinds, each.size, batches or BATCHES):
                rows += some
                chosen += choices(some)
    head = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if json:
        print_json({**head, "rows": rows, "choices": chosen})
        return
    typer.echo(
        f"{head['capability']}, {head['threads']} threads, torch {head['torch']}; activations in "
        "fp32.\nPaths alternate; lower quartiles."
    )
    print_table("", _CPU_COLUMNS, [_path_cells(row) for row in rows])
    typer.echo("")
    table = [
        (c.n, c.k, c.batch, c.form, c.taken, c.fastest, f"{100 * c.loss:5.1f}") for c in chosen
    ]
    print_table("Which path is taken", _CHOICE_COLUMNS, table)


def _path_cells(row: PathRow) -> tuple[str | int, ...]:
    taken = "yes" if row.taken else ""
    return row.n, row.k, row.batch, row.form, row.path, f"{row.milliseconds:9.3f}", taken


def _tune(
    weights: Sequence[Weights],
    device: torch.device,
    seconds: float,
    output: Path | None,
    *,
    json: bool,
) -> None:
    import torch

    from tersor.kernels.bench.timing import copy_bandwidth
    from tersor.kernels.bench.tune import save_cuts, tune
    from tersor.kernels.tuning import user_table

    path = output or user_table(str(_gpu_facts(device)["device"]))
    if path is None:
        raise ConfigError("--output: this user has no home to keep a table in; name a file")
    found: list[dict[str, Any]] = []

    def report(shape: str, form: str, result: Found | None) -> None:
        _progress(f"{form}, {shape}: {_outcome(result)}")
        if result is not None:
            found.append({"shape": shape, "form": form, **to_json(result)})

    with torch.inference_mode():
        bandwidth = copy_bandwidth(device)
        cuts = tune(weights, device=device, bandwidth=bandwidth, seconds=seconds, report=report)
    if not cuts:
        raise ConfigError(f"--seconds: no cut was found in {seconds:.0f} s; give it more")
    table = save_cuts(path, cuts, device)
    if json:
        print_json({**_gpu_facts(device), "table": path, "found": found})
    else:
        typer.echo(f"{path}: {len(cuts)} measured, {len(table.cuts)} shapes in all")


def _outcome(found: Found | None) -> str:
    if found is None:
        return "nothing to tune"
    cut = found.cut
    return (
        f"bn {cut.bn}, {cut.num_warps} warps, {cut.num_stages} stages, {cut.splits} splits; "
        f"{found.speedup:.2f} times as fast as before ({found.tried} of {found.of} tried)"
    )


def _gpu_facts(device: torch.device) -> dict[str, Any]:
    import torch

    from tersor.kernels.tuning import gpu_of

    gpu = gpu_of(device)
    assert gpu is not None, "the device was checked"
    return {
        "device": gpu.name,
        "compute_capability": list(gpu.compute_capability),
        "triton": gpu.triton,
        "torch": torch.__version__,
    }


def _progress(text: str) -> None:
    """One line on stderr while it is a terminal: logs stay readable."""
    if sys.stderr.isatty():
        typer.echo(text, err=True)
