"""`tersor codecs`: every codec on the planes of a real model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tersor.bundle.location import parse_location
from tersor.cli.console import Cell, print_json, print_table, to_json
from tersor.cli.options import JsonOption
from tersor.cli.progress import ProgressBar
from tersor.cli.signals import stoppable
from tersor.runtime.config import format_bytes, parse_bytes
from tersor.runtime.errors import ConfigError

if TYPE_CHECKING:
    from tersor.converters.compare_codecs import CodecReport, KindResult

_COLUMNS = ("codec", "stored %", "bits/symbol", "encode MB/s", "decode MB/s", "chunks", "filter")


def codecs(
    place: Annotated[
        str,
        typer.Argument(
            metavar="SRC|BUNDLE",
            help="A Hugging Face folder, a .pt2 file, or a bundle (also by its URL).",
        ),
    ],
    *,
    recipe: Annotated[
        str | None,
        typer.Option(help="Of a SRC: a recipe by name (default: lossless) or its file (TOML)."),
    ] = None,
    prune: Annotated[
        str | None, typer.Option(help="Of a SRC, prune first: magnitude:0.5 or 2:4.")
    ] = None,
    max_bytes: Annotated[
        str, typer.Option(help="Most raw bytes of each kind of plane to measure, or one block.")
    ] = "64MiB",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw size against speed (needs tersor[plot])."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare the codecs on a model's own planes.

    For each kind of plane, and each stream of its floats: what every codec stores, beside the
    order-0 entropy, and how fast it encodes and decodes on one core. "auto" is what convert would
    store. Each codec gets the filter that suits it, and keeps raw what it does not shrink. Every
    round trip is checked.
    """
    from tersor.converters.codec_plot import check_plot, draw
    from tersor.converters.compare_codecs import compare_codecs
    from tersor.converters.recipe import load_recipe

    source = parse_location(place)
    limit = parse_bytes(max_bytes, key="--max-bytes")
    if limit < 1:
        raise ConfigError(f"--max-bytes: got {max_bytes!r}, expected at least 1 byte")
    if plot is not None:
        check_plot(plot)
    chosen = None
    if recipe is not None or prune is not None:
        chosen = load_recipe(recipe or "lossless", prune=prune)
    with stoppable(), ProgressBar(visible=not json) as progress:
        report = compare_codecs(source, recipe=chosen, max_bytes=limit, progress=progress)
    if plot is not None:
        draw(report, plot)
    if json:
        print_json(_json(report))
    else:
        _print(report)


def _json(report: CodecReport) -> dict[str, Any]:
    kinds = [
        {"name": kind.name, **to_json(kind), "entropy_ratio": kind.entropy_ratio}
        for kind in report.kinds
    ]
    return {**to_json(report), "threads": 1, "kinds": kinds}


def _print(report: CodecReport) -> None:
    recipe = f", recipe {report.recipe}" if report.recipe else ""
    typer.echo(
        f"{report.source}{recipe}\n"
        f"One thread; speeds in 10^6 raw bytes a second, the median of {report.repetitions} runs "
        "after a first that is not timed.\n"
        f"At most {format_bytes(report.max_bytes)} of each kind, in whole blocks spread over its "
        "tensors. Every round trip was checked."
    )
    for kind in report.kinds:
        typer.echo(f"\n{_title(kind)}")
        print_table("", _COLUMNS if kind.stream is None else _COLUMNS[:-1], _rows(kind))


def _title(kind: KindResult) -> str:
    measured = "all of it" if kind.whole else "a sample"
    return (
        f"{kind.name}\n{format_bytes(kind.measured_bytes)} ({measured}) from {kind.tensors} of "
        f"{kind.of_tensors} tensors; order-0 entropy {kind.entropy_bits:.3f} bits/symbol, "
        f"{100 * kind.entropy_ratio:.2f} %"
    )


def _rows(kind: KindResult) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for result in kind.results:
        row: tuple[Cell, ...] = (
            result.codec,
            f"{100 * result.ratio:8.2f}",
            f"{result.bits_per_symbol:11.3f}",
            round(result.encode_mb_per_second),
            round(result.decode_mb_per_second),
            _shares(result.codecs),
        )
        rows.append(row if kind.stream is not None else (*row, _shares(result.filters)))
    return rows


def _shares(shares: Mapping[str, float]) -> str:
    """For example "zstd 50 %, raw 50 %"; the share only where there are several."""
    percents = {name: round(100 * share) for name, share in shares.items()}
    shown = {name: percent for name, percent in percents.items() if percent}
    if len(shown) == 1:
        return next(iter(shown))
    return ", ".join(f"{name} {percent} %" for name, percent in shown.items())
