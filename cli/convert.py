"""`tersor convert`: a full model in, one compressed bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.console import print_json, print_pairs
from tersor.cli.options import JsonOption, ParityOption, percentage
from tersor.cli.progress import ProgressBar
from tersor.cli.signals import stoppable


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="A Hugging Face folder, or a torch.export .pt2 file."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.tersor", help="The bundle to write.")],
    *,
    recipe: Annotated[
        str, typer.Option(help="lossless, int8, int4, or a recipe file (TOML).")
    ] = "lossless",
    prune: Annotated[
        str | None,
        typer.Option(help="Prune first: magnitude:0.5 (share of zeros) or 2:4 (zeros in n:m)."),
    ] = None,
    codec: Annotated[
        str,
        typer.Option(
            help="auto measures and keeps the smallest; "
            "or raw, lz4, zstd, lz78, lzw, huffman, rans."
        ),
    ] = "auto",
    parity: ParityOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Convert a model into a compressed bundle."""
    from tersor.converters.pipeline import convert as run
    from tersor.converters.recipe import load_recipe
    from tersor.runtime.config import format_bytes

    share = None if parity is None else percentage(parity)
    with stoppable(), ProgressBar(visible=not json) as progress:
        report = run(
            source, out, recipe=load_recipe(recipe, prune=prune), codec=codec,
            parity=share, force=force, progress=progress,
        )  # fmt: skip
    if json:
        print_json(report)
        return
    print_pairs(
        {
            "bundle": str(out),
            "size": format_bytes(report.bundle_bytes),
            "source": format_bytes(report.source_bytes),
            "ratio": f"{100 * report.ratio:.1f} %",
            "bits per weight": f"{report.bits_per_weight:.2f}",
            "digest": report.digest,
        }
    )
