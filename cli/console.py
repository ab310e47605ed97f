"""How the command speaks: tables and JSON on stdout, progress and errors on stderr."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tersor.cli.errors import InputError

Cell = str | int | float


def prepare_streams() -> None:
    """Makes printing safe: what stdout's encoding lacks is escaped, a closed stream is replaced."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
    if sys.stdout is None:
        error_line("stdout is closed; expected somewhere to write the result to")
        sys.exit(1)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def decoded(data: bytes, what: str) -> str:
    """Text from outside.

    Raises:
        InputError: it is not UTF-8; `what` names it.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None


def error_line(message: str) -> None:
    """One clear line on stderr, whatever the message's own line breaks."""
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")


def print_json(value: Any) -> None:
    """Machine-readable result: one JSON document on stdout, escaped where its encoding needs it."""
    document = to_json(value)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2)
    sys.stdout.write(text + "\n")


def to_json(value: Any) -> Any:
    """Dataclasses, enums, paths and mappings as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """A plain table: numbers to the right, names to the left, whole even when piped."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, markup=False).print(table)


def print_pairs(pairs: Mapping[str, Cell]) -> None:
    """Name and value, a line each, aligned."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        sys.stdout.write(f"{name:<{width}}  {_cell(value)}\n")


def _cell(value: Cell) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
