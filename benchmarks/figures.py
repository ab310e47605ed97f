"""The pictures of the results page. matplotlib is imported only where one is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, str]
SIZE = (7.2, 4.2)
# Okabe and Ito's colours, told apart where sight is weak in red or green.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D31", "#6A51A3")
INK = "#222222"


def draw_cpu_matmul(rows: Sequence[Row], path: Path) -> None:
    """Milliseconds against rows of activations for the largest shape, a line a path."""
    n, k = max((int(row["n"]), int(row["k"])) for row in rows)
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if (int(row["n"]), int(row["k"])) == (n, k):
            lines.setdefault((row["layout"], row["path"]), []).append(row)
    layouts = list(dict.fromkeys(layout for layout, _ in lines))
    with _figure(path) as (_, axes):
        for (layout, name), points in lines.items():
            _line(axes, layout, name, points, COLOURS[layouts.index(layout)])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _scalar_ticks(axes)
        axes.set_xlabel("rows of activations")
        axes.set_ylabel("milliseconds")
        axes.set_title(f"{n} x {k}, one thread: {rows[0]['machine']}", fontsize=9, loc="left")
        axes.legend(frameon=False, fontsize=8)


def _line(axes: Axes, layout: str, name: str, points: Sequence[Row], colour: str) -> None:
    batches = [int(point["m"]) for point in points]
    times = [float(point["milliseconds"]) for point in points]
    dashed = name == "decoded"
    axes.plot(
        batches, times, color=colour, linewidth=1.1, linestyle="--" if dashed else "-",
        label=f"{layout}, {name}", marker="o", markersize=2.5,
    )  # fmt: skip
    taken = [point.get("taken") == "True" for point in points]
    if any(taken):
        axes.plot(
            [batch for batch, chosen in zip(batches, taken, strict=True) if chosen],
            [time for time, chosen in zip(times, taken, strict=True) if chosen],
            color=colour, linewidth=3.4, alpha=0.55, solid_capstyle="round",
        )  # fmt: skip


def draw_decode_cpu(rows: Sequence[Row], path: Path) -> None:
    """Speed over transformers in bf16, a bar a form and a group a model."""
    speeds = {(row["model"], row["form"]): float(row["ratio_to_transformers_bf16"]) for row in rows}
    with _figure(path) as (_, axes):
        _bars(axes, speeds)
        axes.axhline(1.0, color=INK, linewidth=0.8)
        axes.set_ylabel("tokens/s, transformers bf16 = 1")


def draw_gpu_matmul(rows: Sequence[Row], path: Path) -> None:
    """Share of the copy bandwidth for one row of activations, a group a shape."""
    shares = {
        (row["shape"], row["form"]): 100 * float(row["share_of_copy_bandwidth"])
        for row in rows
        if row["batch"] == "1"
    }
    with _figure(path) as (figure, axes):
        figure.set_size_inches(11, 4.2)
        _bars(axes, shares)
        axes.axhline(100, color=INK, linewidth=0.8)
        axes.set_ylabel("% of the copy bandwidth, batch 1")


def _bars(axes: Axes, values: Mapping[tuple[str, str], float]) -> None:
    groups = list(dict.fromkeys(group for group, _ in values))
    forms = list(dict.fromkeys(form for _, form in values))
    width = 0.84 / len(forms)
    for index, form in enumerate(forms):
        present = [
            (at, values[group, form]) for at, group in enumerate(groups) if (group, form) in values
        ]
        axes.bar(
            [at + (index - (len(forms) - 1) / 2) * width for at, _ in present],
            [value for _, value in present],
            width=0.94 * width, label=form, color=COLOURS[index % len(COLOURS)],
            hatch="//" if index >= len(COLOURS) else None, edgecolor="white", linewidth=0.3,
        )  # fmt: skip
    axes.set_xticks(range(len(groups)), groups)
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _scalar_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


@contextmanager
def _figure(path: Path) -> Iterator[tuple[Figure, Axes]]:
    """A figure that is written as SVG at the end, with the same bytes for the same numbers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    yield figure, axes
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    # Names of elements and the date would otherwise differ in every run.
    with mpl.rc_context({"svg.hashsalt": "tersor", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
