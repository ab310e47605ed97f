"""Draws a comparison of codecs: size against decoding speed, a panel for each kind of plane."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.bundle.codecs import AUTO
from tersor.converters.compare_codecs import CodecReport, KindResult
from tersor.converters.errors import ConvertError, DestinationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_MAX_PANELS = 9  # the largest kinds; more would not be read
_PANEL_INCHES = (4.3, 3.3)
_HEADER_INCHES = 1.0
_FOOTER_INCHES = 0.55
_DPI = 150
# Told apart in black and white by shape, and by colour where sight is weak in red or green
# (Okabe and Ito's palette).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D31", "#6A51A3")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_INK = "#222222"
_FAINT = "#8a8a8a"


def check_plot(path: Path) -> None:
    """Finds out before the work whether `draw` could write `path`.

    Raises:
        ConvertError: matplotlib is not installed.
        DestinationError: the name does not end in `.png`, is a folder, or is in none.
    """
    try:
        import matplotlib.figure  # noqa: F401 - asked for, not used
    except ImportError as error:
        raise ConvertError("drawing needs matplotlib; install tersor[plot].") from error
    if path.suffix.lower() != ".png":
        raise DestinationError(f"{path} cannot be drawn; expected a name that ends in .png.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise DestinationError(f"{path} is a folder, or in a folder that does not exist.")


def draw(report: CodecReport, path: Path) -> None:
    """Writes the picture as a PNG, in place of a file of that name.

    Raises:
        ConvertError, DestinationError: as `check_plot`.
        OSError: the file cannot be written.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figure_of(report)
    FigureCanvasAgg(figure)  # which makes it the figure's
    figure.savefig(path, dpi=_DPI)


def figure_of(report: CodecReport) -> Figure:
    """The picture, on no canvas yet."""
    from matplotlib.figure import Figure

    kinds = report.kinds[:_MAX_PANELS]
    columns = max(1, min(_COLUMNS, len(kinds)))
    rows = max(1, math.ceil(len(kinds) / columns))
    width = max(2, columns) * _PANEL_INCHES[0]
    height = rows * _PANEL_INCHES[1] + _HEADER_INCHES + _FOOTER_INCHES
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.subplots_adjust(
        left=0.65 / width, right=1 - 0.25 / width,
        bottom=(_FOOTER_INCHES + 0.5) / height, top=1 - (_HEADER_INCHES + 0.35) / height,
        wspace=0.28, hspace=0.52,
    )  # fmt: skip
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, kind in zip(grid, kinds, strict=False):
        _panel(axes, kind)
    for axes in grid[len(kinds) :]:
        axes.set_visible(False)
    _frame(figure, report, height, shown=len(kinds))
    if kinds:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=9,
            handletextpad=0.3, columnspacing=1.4, bbox_to_anchor=(0.5, 0.08 / height),
        )  # fmt: skip
    return figure


def _frame(figure: Figure, report: CodecReport, height: float, *, shown: int) -> None:
    recipe = f", recipe {report.recipe}" if report.recipe else ""
    left = 0.2 / figure.get_figwidth()
    figure.text(
        left, 1 - 0.3 / height, f"Codecs on the planes of {Path(report.source).name}{recipe}",
        fontsize=14, fontweight="bold", color=_INK, va="center", parse_math=False,
    )  # fmt: skip
    more = (
        f" The {shown} largest of {len(report.kinds)} kinds." if shown < len(report.kinds) else ""
    )
    figure.text(
        left, 1 - 0.62 / height,
        "Lower is smaller, further right decodes faster (one thread). Dashed: the order-0 entropy. "
        f"Ring: what convert would store.{more}",
        fontsize=9.5, color=_FAINT, va="center",
    )  # fmt: skip


def _panel(axes: Axes, kind: KindResult) -> None:
    plain = [result for result in kind.results if result.codec != AUTO]
    for number, result in enumerate(plain):
        axes.scatter(
            result.decode_mb_per_second, 100 * result.ratio, label=result.codec,
            s=max(46, 84 - 5 * number),  # so that equal results show as one around the other
            color=_COLOURS[number % len(_COLOURS)], marker=_MARKERS[number % len(_MARKERS)],
            edgecolors="white", linewidths=0.7, zorder=3,
        )  # fmt: skip
    for result in kind.results:
        if result.codec == AUTO:
            axes.scatter(
                result.decode_mb_per_second, 100 * result.ratio, label=AUTO, s=150,
                facecolors="none", edgecolors=_INK, linewidths=1.3, zorder=2,
            )  # fmt: skip
    bound = 100 * kind.entropy_ratio
    axes.axhline(bound, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"entropy {kind.entropy_bits:.2f} bits", (0.985, bound), xycoords=("axes fraction", "data"),
        xytext=(0, -3), textcoords="offset points", ha="right", va="top", fontsize=8, color=_INK,
    )  # fmt: skip
    _scales(axes, kind, bound)


def _scales(axes: Axes, kind: KindResult, bound: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ratios = [100 * result.ratio for result in kind.results] + [bound]
    room = max(1.0, max(ratios) - min(ratios))
    axes.set_ylim(min(ratios) - 0.16 * room, max(ratios) + 0.1 * room)
    speeds = [result.decode_mb_per_second for result in kind.results]
    axes.set_xscale("log")
    axes.set_xlim(min(speeds) / 1.6, max(speeds) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e6 else f"{value:.0e}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("decode, MB/s", fontsize=8.5, color=_INK)
    axes.set_ylabel("stored, % of raw", fontsize=8.5, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK, length=3)
    axes.grid(visible=True, which="major", color="#e6e6e6", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b5b5b5")
    axes.set_title(
        kind.name, loc="left", fontsize=10, fontweight="bold", color=_INK, pad=16, parse_math=False
    )
    mebibytes = kind.measured_bytes / (1 << 20)
    size = f"{mebibytes:.1f} MiB" if mebibytes >= 1 else f"{1024 * mebibytes:.1f} KiB"
    size += f" from {kind.tensors} of {kind.of_tensors} tensors"
    axes.annotate(
        size, (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
        fontsize=8, color=_FAINT,
    )  # fmt: skip
