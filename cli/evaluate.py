"""`tersor eval`: what a bundle's compression cost, measured by running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.bundle.location import parse_location
from tersor.cli.console import decoded, print_json, print_pairs, to_json
from tersor.cli.options import ActivationsOption, BundleArgument, DeviceOption, JsonOption
from tersor.cli.signals import stoppable


def evaluate(
    bundle: BundleArgument,
    *,
    text: Annotated[Path, typer.Option(help="UTF-8 text to measure on.")],
    reference: Annotated[
        str | None, typer.Option(help="The original folder, or another bundle, to compare with.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop after this many tokens of the text.")
    ] = None,
    device: DeviceOption = "cpu",
    activations: ActivationsOption = "auto",
    json: JsonOption = False,
) -> None:
    """Measure what compression cost.

    Quality (bits per byte, KL divergence, top-1 agreement), speed and memory.
    """
    from tersor.converters.certify import evaluate as run

    with stoppable():
        report = run(
            parse_location(bundle),
            decoded(text.read_bytes(), str(text)),
            reference=None if reference is None else parse_location(reference),
            device=device,
            activations=activations,  # type: ignore[arg-type]  # checked there
            max_tokens=max_tokens,
        )
    if json:
        print_json(report)
    else:
        pairs = to_json(report)
        print_pairs({k.replace("_", " "): v for k, v in pairs.items() if v is not None})
