"""`tersor diff`: what two bundles share, without reading weights."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tersor.bundle.location import parse_location
from tersor.cli.console import Cell, print_json, print_table
from tersor.cli.options import JsonOption
from tersor.runtime.config import format_bytes

if TYPE_CHECKING:
    from tersor.bundle.diff import BundleDiff, BundleFacts, Change, NamedDiff, Overlap

_MOST_LINES = 20
_MOST_NAMES = 3
_MOST_CHARACTERS = 60


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A bundle, a file or a URL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The bundle to compare it with.")],
    *,
    json: JsonOption = False,
) -> None:
    """Compare two bundles without reading weights.

    How many bytes of each are in the other, which tensors and files are equal or changed, and how
    program, recipe and format differ. The exit code is 0 whether they differ or not, and 1 if one
    of them cannot be read.
    """
    from tersor.bundle.diff import diff as run
    from tersor.bundle.reader import BundleReader

    places = parse_location(a), parse_location(b)
    with BundleReader.open(places[0]) as first, BundleReader.open(places[1]) as second:
        found = run(first, second)
    if json:
        print_json(found)
    else:
        _print(found)


def _print(found: BundleDiff) -> None:
    rows = [*_fact_rows(found), *_overlap_rows(found)]
    print_table("", ("", "A", "B"), [tuple(map(str, row)) for row in rows])
    missing = found.b.file_bytes - found.chunks.b.stored_bytes
    content = "equal" if found.same_content else "different"
    typer.echo(
        f"\ncontent: {content}; whoever has A lacks {format_bytes(missing)} of the "
        f"{format_bytes(found.b.file_bytes)} of B"
    )
    _print_named("tensors", found.tensors)
    _print_named("assets", found.assets)
    if found.fields:
        typer.echo("")
        fields = found.fields[:_MOST_LINES]
        rows = [(_text(each.field)[1:-1], _text(each.a), _text(each.b)) for each in fields]
        print_table("", ("field", "A", "B"), rows)
        _print_rest(len(found.fields))


def _fact_rows(found: BundleDiff) -> list[tuple[Cell, ...]]:
    def row(name: str, value: Any) -> tuple[Cell, ...]:
        return (name, value(found.a), value(found.b))

    def size(facts: BundleFacts) -> str:
        return format_bytes(facts.file_bytes)

    return [
        row("bundle", lambda facts: facts.bundle),
        row("file", size),
        row("format version", lambda facts: facts.format_version),
        row("content digest", lambda facts: facts.digest[:16]),
        row("tensors", lambda facts: facts.tensors),
        row("planes at rest", lambda facts: facts.planes),
        row("chunks at rest", lambda facts: facts.chunks),
    ]


def _overlap_rows(found: BundleDiff) -> list[tuple[Cell, ...]]:
    def text(overlap: Overlap, total: int) -> str:
        share = f"{100 * overlap.share:.1f} %"
        return f"{overlap.count} of {total}: {format_bytes(overlap.stored_bytes)}, {share}"

    planes, chunks = found.planes, found.chunks
    return [
        ("planes in the other", text(planes.a, found.a.planes), text(planes.b, found.b.planes)),
        ("chunks in the other", text(chunks.a, found.a.chunks), text(chunks.b, found.b.chunks)),
    ]


def _print_named(what: str, named: NamedDiff) -> None:
    typer.echo(
        f"\n{what}: {len(named.equal)} equal, {len(named.changed)} changed, "
        f"{len(named.only_a)} only in A, {len(named.only_b)} only in B"
    )
    changes: dict[str, list[str]] = {}
    for change in named.changed:
        changes.setdefault(_change_text(change), []).append(change.name)
    lines = [
        *(f"  {_names(names)}: {text}" for text, names in changes.items()),
        *([f"  only in A: {_names(named.only_a)}"] if named.only_a else []),
        *([f"  only in B: {_names(named.only_b)}"] if named.only_b else []),
    ]
    for line in lines[:_MOST_LINES]:
        typer.echo(line)
    _print_rest(len(lines))


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown


def _print_rest(lines: int) -> None:
    if lines > _MOST_LINES:
        typer.echo(f"  … and {lines - _MOST_LINES} more; --json lists them all")


def _change_text(change: Change) -> str:
    """For example "layout "dense" -> "int8", planes values, codes, scales"."""
    parts = [
        f"{_text(each.field)[1:-1]} {_text(each.a)} -> {_text(each.b)}"
        for each in change.differences
        if not each.field.startswith("planes.")
    ]
    planes = [
        each.field.removeprefix("planes.")
        for each in change.differences
        if each.field.startswith("planes.")
    ]
    return ", ".join([*parts, *(["planes " + ", ".join(planes)] if planes else [])])


def _text(value: Any) -> str:
    """A value of a stranger's bundle on a line of a terminal: escaped, and not for ever."""
    text = json_module.dumps(value)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
