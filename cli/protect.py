"""`tersor protect` and `tersor repair`: parity for a bundle, and a bundle from its parity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersor.cli.console import error_line, print_json, print_pairs, to_json
from tersor.cli.options import FileArgument, ForceOption, JsonOption, local_file, percentage
from tersor.cli.progress import ProgressBar
from tersor.cli.signals import stoppable
from tersor.runtime.config import format_bytes

if TYPE_CHECKING:
    from tersor.bundle.repair import RepairReport

OutputOption = Annotated[
    Path | None, typer.Option(help="The file to write; without it the bundle itself is replaced.")
]


def protect(
    bundle: FileArgument,
    *,
    parity: Annotated[
        str, typer.Option(help="Share of the data that may be damaged: 0.5% to 50%.")
    ] = "5%",
    output: OutputOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Add parity to a bundle, or other parity than it has.

    Weights and files stay as they are, byte for byte. A damaged bundle is refused.
    """
    from tersor.bundle.protect import protect as run

    path, share = local_file(bundle), percentage(parity)
    with stoppable(), ProgressBar(visible=not json) as progress:
        report = run(
            path, share, output=output, force=force,
            progress=lambda done, total: progress.update(
                item="parity", done_bytes=done, total_bytes=total
            ),
        )  # fmt: skip
    if json:
        print_json(report)
        return
    stripe = report.parity
    print_pairs(
        {
            "bundle": str(report.bundle),
            "size": format_bytes(report.file_bytes),
            "parity": f"{format_bytes(report.parity_bytes)}, "
            + ("in place of other parity" if report.replaced else "added"),
            "restores": f"{stripe.parity_blocks} damaged blocks of {stripe.data_blocks} in each "
            f"stripe, {format_bytes(stripe.block_bytes)} each",
        }
    )


def repair(
    bundle: FileArgument,
    *,
    output: OutputOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Restore a damaged bundle by its parity.

    Gives back the identical file. If more is damaged than the parity restores, nothing is written,
    what is lost is listed, and the exit code is 1.
    """
    from tersor.bundle.errors import BundleParityError
    from tersor.bundle.repair import repair as run

    path = local_file(bundle)
    try:
        with stoppable(), ProgressBar(visible=not json) as progress:
            report = run(
                path, output=output, force=force,
                progress=lambda done, total: progress.update(
                    item="checking", done_bytes=done, total_bytes=total
                ),
            )  # fmt: skip
    except BundleParityError as error:
        if json:
            print_json({"ok": False, "error": str(error), **(to_json(error.report) or {})})
        else:
            error_line(str(error))
            _print_lost(error.report)
        raise typer.Exit(1) from None
    if json:
        print_json({"ok": True, **to_json(report)})
        return
    _print_repaired(report)


def _print_lost(report: RepairReport | None) -> None:
    """A line for each thing that is lost: the message before names only some."""
    for damage in report.lost if report else ():
        error_line(f"lost: {damage.described()}")


def _print_repaired(report: RepairReport) -> None:
    if report.output is None:
        typer.echo(f"{report.bundle}: nothing is damaged")
        return
    state = report.parity
    length = ""
    if report.found_bytes != report.file_bytes:
        length = f"; the file had {report.found_bytes} bytes of {report.file_bytes}"
    typer.echo(
        f"{report.output}: restored {report.restored_blocks} of {state.blocks} blocks and "
        f"{report.restored_packets} of {state.packets} parity packets in {state.damaged_stripes} "
        f"of {state.stripes} stripes{length}"
    )
