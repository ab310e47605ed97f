"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from tersor.bundle.location import BundleUrl, parse_location

# A path or a URL as typed: a Path would make one slash of the two in "https://". Commands hand it
# to `parse_location` before anything else, and messages use what that returns: a URL's query may
# be a secret.
BundleArgument = Annotated[
    str,
    typer.Argument(metavar="BUNDLE", help="A bundle: name.tersor, or its http or https URL."),
]
FileArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle, name.tersor.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
ParityOption = Annotated[
    str | None,
    typer.Option(help="Add parity to repair damage by: 5% restores up to 5% of the file."),
]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, or cuda:N.")]
ActivationsOption = Annotated[
    str,
    typer.Option(help="Activation dtype: bf16, fp32, or auto (bf16 on CUDA, fp32 on a CPU)."),
]
KVCacheDtypeOption = Annotated[
    str,
    typer.Option(
        help="Dtype of keys and values: bf16, fp32, int8 (half of bf16's memory), "
        "or auto (that of the activations)."
    ),
]


def local_file(text: str) -> Path:
    """The path of a bundle that is to be written; typer reports a URL as wrong usage."""
    place = parse_location(text)
    if isinstance(place, BundleUrl):
        raise typer.BadParameter(f"{place} is a URL; this command rewrites a file, so download it")
    return place


def percentage(text: str) -> float:
    """The share that "5%" means; typer reports the error as wrong usage."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if number == text.strip() or not 0.5 <= value <= 50:  # false for NaN, too
        raise typer.BadParameter(f"{text!r} is not a percentage from 0.5% to 50%, such as 5%")
    return value / 100
