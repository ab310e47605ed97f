"""`tersor convert`: a full model in, one compressed bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.bundle.codecs import AUTO, CODEC_NAMES
from tersor.bundle.codecs.entropy.rans import COLUMN_CLASSES_MB_PER_SECOND
from tersor.bundle.encoding import DECODE_FLOOR_MB_PER_SECOND
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
        str,
        typer.Option(
            help="lossless, float12, int8, w8a8, fp8, int4, nf4, mxfp4, pow2, or a file (TOML)."
        ),
    ] = "lossless",
    prune: Annotated[
        str | None,
        typer.Option(help="Prune first: magnitude:0.5 (share of zeros) or 2:4 (zeros in n:m)."),
    ] = None,
    codec: Annotated[
        str,
        typer.Option(
            help=f"{AUTO} measures and keeps the smallest; or one of {', '.join(CODEC_NAMES)}. "
            "For a GPU rans, which it decodes itself."
        ),
    ] = AUTO,
    min_decode_speed: Annotated[
        float,
        typer.Option(
            metavar="MB/S",
            help=f"{AUTO} takes only codecs rated to decode as fast on one core. At "
            f"{COLUMN_CLASSES_MB_PER_SECOND} or less rans may tell columns apart, too: smaller, "
            "and slower to decode.",
        ),
    ] = DECODE_FLOOR_MB_PER_SECOND,
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
            decode_floor=min_decode_speed, parity=share, force=force, progress=progress,
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
