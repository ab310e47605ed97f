"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, name.tersor.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, or cuda:N.")]
ActivationsOption = Annotated[
    str,
    typer.Option(help="Activation dtype: bf16, fp32, or auto (bf16 on CUDA, fp32 on a CPU)."),
]
