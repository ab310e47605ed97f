"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, name.tersor.")]
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
