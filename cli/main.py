"""Entry point: collects the commands and turns every known error into one line and an exit code.

Exit codes: 0 done, 1 the input or the bundle is bad (one clear line on stderr), 2 wrong usage.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from tersor.cli import bench, codecs, convert, diff, evaluate, generate, inspect, protect, serve
from tersor.cli.console import error_line, prepare_streams
from tersor.cli.errors import InputError, RemoteError
from tersor.runtime.errors import ConfigError

app = typer.Typer(
    name="tersor",
    help="Convert models into compressed bundles, look into them, and serve them over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("convert")(convert.convert)
app.command("inspect")(inspect.inspect)
app.command("verify")(inspect.verify)
app.command("protect")(protect.protect)
app.command("repair")(protect.repair)
app.command("extract")(inspect.extract)
app.command("eval")(evaluate.evaluate)
app.command("diff")(diff.diff)
app.command("codecs")(codecs.codecs)
app.add_typer(bench.bench, name="bench")
app.command("serve")(serve.serve)
app.command("generate")(generate.generate)


def _print_version(value: bool) -> None:  # noqa: FBT001 - the callback's signature is typer's
    if value:
        typer.echo(f"tersor {version('tersor')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    """Serve compressed models."""


def _known_errors() -> tuple[type[BaseException], ...]:
    """The roots of every room's error tree; imported only once something went wrong."""
    from tersor.bundle.errors import BundleError
    from tersor.converters.errors import ConvertError
    from tersor.kernels.errors import LayoutError, TuningError
    from tersor.models.errors import ModelError
    from tersor.runtime.errors import ServingError

    return (
        BundleError, LayoutError, TuningError, ModelError, ConvertError, ServingError,
        ConfigError, InputError, RemoteError,
    )  # fmt: skip


def main() -> None:
    """Runs the command line. Never shows a traceback for a wrong input."""
    prepare_streams()
    try:
        app()
    except KeyboardInterrupt:
        error_line("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our stdout went away (`tersor inspect … | head`): nothing left to say.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        reason = error.strerror or str(error)
        error_line(reason if error.filename is None else f"{error.filename}: {reason}")
        sys.exit(1)
    except Exception as error:
        if not isinstance(error, _known_errors()):
            raise
        error_line(str(error))
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
