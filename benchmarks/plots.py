"""Writes `docs/results.md` and its pictures from the CSV files under `results/`: `make results`.

Every number on the page comes from a file, with the machine and the commit that made it. A section
whose file does not exist says that it was not measured: nothing is filled in. `--check` compares
the page instead of writing (a test calls it); pictures need matplotlib, the extra `tersor[plot]`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import figures
from record import RESULTS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "results.md"
PICTURES = DOCS / "results"
Row = Mapping[str, str]
Show = Callable[[Sequence[Row]], list[str]]
Draw = Callable[[Sequence[Row], Path], None]
Cell = Callable[[Row], str]

HEAD = """# Results

Written by `make results` from the files under [`benchmarks/results`](../benchmarks/results); the
scripts that made them, and what each claims, stand in
[benchmarks/README.md](../benchmarks/README.md). Machines are shared and noisy: compare ratios
within one table, not seconds across tables. `+` after a commit: with uncommitted code.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One file of results, as it is shown."""

    title: str
    file: str  # without .csv
    text: str
    show: Show
    draw: Draw | None = None

    def markdown(self) -> str:
        path = RESULTS / f"{self.file}.csv"
        lines = [f"## {self.title}", "", self.text, ""]
        if not path.exists():
            return "\n".join([*lines, f"**Not measured yet**: there is no `{path.name}`.", ""])
        rows = read(path)
        if self.draw is not None:
            lines += [f"![{self.title}](results/{self.file}.svg)", ""]
        return "\n".join([*lines, *self.show(rows), "", f"{origins(rows)} `{path.name}`.", ""])

    def picture(self) -> None:
        """Draws the section's picture, if it has one and was measured."""
        path = RESULTS / f"{self.file}.csv"
        if self.draw is not None and path.exists():
            self.draw(read(path), PICTURES / f"{self.file}.svg")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def origins(rows: Sequence[Row]) -> str:
    """Machines, torch versions and commits of the rows."""
    found = dict.fromkeys(
        f"{row['machine']}, torch {row['torch']}, commit {row['commit']}" for row in rows
    )
    return "; ".join(found) + ";"


def columns(**keys: str) -> Show:
    """A table of the columns that any row fills: heading (`_` is a space) = column of the file."""

    def show(rows: Sequence[Row]) -> list[str]:
        used = {head: key for head, key in keys.items() if any(row.get(key) for row in rows)}
        heads = [head.replace("_", " ") for head in used]
        return table(heads, ([row.get(key) or "" for key in used.values()] for row in rows))

    return show


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(cells) + " |" for cells in rows]
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *body]


def pivot(rows: Sequence[Row], down: str, across: Callable[[Row], str], cell: Cell) -> list[str]:
    """A table of `cell` with a line for each value of the column `down`."""
    heads = list(dict.fromkeys(across(row) for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        lines.setdefault(row[down], {})[across(row)] = cell(row)
    return table(
        [down, *heads],
        ([name, *(cells.get(head, "") for head in heads)] for name, cells in lines.items()),
    )


def show_paths(rows: Sequence[Row]) -> list[str]:
    """Milliseconds by number of rows and path, for each shape."""
    lines: list[str] = []
    for n, k in dict.fromkeys((row["n"], row["k"]) for row in rows):
        some = [row for row in rows if (row["n"], row["k"]) == (n, k)]
        lines += [f"N = {n}, K = {k}:", ""]
        lines += pivot(some, "m", lambda row: f"{row['layout']} {row['path']}", _path_cell)
        lines.append("")
    return lines[:-1]


def _path_cell(row: Row) -> str:
    return f"**{row['milliseconds']}**" if row.get("taken") == "True" else row["milliseconds"]


def show_products(rows: Sequence[Row]) -> list[str]:
    """Microseconds and the share of the copy bandwidth by form and batch, for each shape."""
    lines: list[str] = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        some = [row for row in rows if row["shape"] == shape]
        some.sort(key=lambda row: int(row["batch"]))
        lines += [f"`{shape}`, N = {some[0]['n']}, K = {some[0]['k']}:", ""]
        lines += pivot(some, "form", lambda row: f"M = {row['batch']}", _product_cell)
        lines.append("")
    return lines[:-1]


def _product_cell(row: Row) -> str:
    return f"{row['microseconds']} us, {100 * float(row['share_of_copy_bandwidth']):.0f} %"


SECTIONS = (
    Section(
        title="What a recipe costs",
        file="quality",
        text="Size of the whole file, and quality of the bundle as it runs against the original.",
        show=columns(
            model="model",
            recipe="recipe",
            bytes="bundle_bytes",
            of_the_source="ratio",
            bits_per_byte="bits_per_byte",
            KL="kl_mean",
            top_1="top1_agreement",
            cosine="cosine_mean",
        ),
    ),
    Section(
        title="Products on a CPU",
        file="cpu_matmul",
        text="Milliseconds by rows of activations (m), which are in fp32. A quantized layout has\n"
        "two paths: packed up to a break-even that depends on the CPU's instructions, and decoded\n"
        "above. Bold, and thick in the picture, is the one it takes. Up to 32 rows packed is kept\n"
        "even where decoding is faster: it alone gives a row the same bits whatever the batch.",
        show=show_paths,
        draw=figures.draw_cpu_matmul,
    ),
    Section(
        title="Decoding on a CPU",
        file="decode_cpu",
        text="One sequence, greedy; transformers in the same process.",
        show=columns(
            model="model",
            form="form",
            threads="threads",
            tokens_a_second="tokens_per_second",
            of_transformers_bf16="ratio_to_transformers_bf16",
        ),
        draw=figures.draw_decode_cpu,
    ),
    Section(
        title="Loading",
        file="bundle_load",
        text="MB of decoded weights a second, from the page cache; every byte is verified.",
        show=columns(
            model="model",
            codec="codec",
            one_thread="load_1_mb_per_second",
            two_threads="load_2_mb_per_second",
            verification_percent="verify_percent",
        ),
    ),
    Section(
        title="Serving",
        file="server_overhead",
        text="What gRPC adds to the bare engine, on one machine; latencies in milliseconds.",
        show=columns(
            contestant="contestant",
            at_once="concurrency",
            p50="latency_p50_ms",
            p90="latency_p90_ms",
            tokens_a_second="tokens_per_second",
            first_token_p50="first_token_p50_ms",
        ),
    ),
    Section(
        title="Products on a GPU",
        file="gpu_matmul",
        text="Shapes of Llama-3-8B, weights read from memory, launches in CUDA graphs; the share\n"
        "is of the bandwidth of a copy in the same run.",
        show=show_products,
        draw=figures.draw_gpu_matmul,
    ),
    Section(
        title="Decoding on a GPU",
        file="gpu_decode",
        text="Llama-3-8B with random weights, one sequence, a step in a CUDA graph; the bound is\n"
        "the weights' bytes at the bandwidth of a copy.",
        show=columns(
            form="form",
            context="context",
            tokens_a_second="tokens_per_second",
            weights_GB="weight_gb",
            share_of_bound="share_of_bound",
        ),
    ),
    Section(
        title="Entropy decoding on a GPU",
        file="gpu_entropy",
        text="GB/s of decoded bytes.",
        show=columns(
            symbols="symbols",
            decoder="decoder",
            MiB="raw_mib",
            bits="bits_per_symbol",
            GB_a_second="decoded_gb_per_second",
            share_of_copy="share_of_copy_bandwidth",
        ),
    ),
)


def page() -> str:
    return "\n".join([HEAD, *(section.markdown() for section in SECTIONS)])


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes docs/results.md and its pictures.")
    parser.add_argument("--check", action="store_true", help="compare the page, write nothing")
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            print(f"{PAGE.name} is not what the results say: run `make results`", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for section in SECTIONS:
        section.picture()
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
