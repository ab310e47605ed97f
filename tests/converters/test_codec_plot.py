"""The picture of a comparison: what is on it, and what stands in the way of drawing it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tersor.bundle.codecs import AUTO, CODEC_NAMES
from tersor.converters.codec_plot import check_plot, draw, figure_of
from tersor.converters.compare_codecs import CodecReport, CodecResult, KindResult
from tersor.converters.errors import ConvertError, DestinationError


def kind(number: int, *codecs: str) -> KindResult:
    """Codecs that get smaller and slower from one to the next."""
    return KindResult(
        layout="int4",
        plane=f"codes$_{number}$",  # no formula, a name
        dtype="u4",
        filter=None,
        stream=None,
        tensors=3,
        of_tensors=4,
        measured_bytes=1 << (14 + number),
        whole=True,
        symbols=1 << (14 + number),
        entropy_bits=3.5,
        results=tuple(
            CodecResult(
                codec=name,
                stored_bytes=1000,
                ratio=1 - 0.05 * at,
                bits_per_symbol=8 - 0.4 * at,
                encode_mb_per_second=100,
                decode_mb_per_second=20000 / 3**at,
                filters={"none": 1},
                codecs={name: 1},
            )
            for at, name in enumerate(codecs)
        ),
    )


def report(*kinds: KindResult) -> CodecReport:
    return CodecReport(source="a/$b", recipe="int4", max_bytes=1, repetitions=3, kinds=kinds)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_a_panel_for_each_kind_with_each_codec_and_the_entropy() -> None:
    names = [*CODEC_NAMES, AUTO]
    figure = figure_of(report(*(kind(number, *names) for number in range(4))))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == [
        f"int4 codes$_{number}$ u4" for number in range(4)
    ]
    for panel in panels:
        _, labels = panel.get_legend_handles_labels()
        assert labels == names
        (line,) = panel.get_lines()
        assert np.asarray(line.get_ydata()).tolist() == pytest.approx([43.75, 43.75])
        low, high = panel.get_ylim()
        assert low < 43.75 < 100 < high
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert any("$b, recipe int4" in text for text in texts(figure))


def test_more_kinds_than_can_be_read_are_left_out_and_said_so() -> None:
    figure = figure_of(report(*(kind(number, "raw") for number in range(11))))
    assert len(figure.axes) == 9
    assert any("The 9 largest of 11 kinds." in text for text in texts(figure))


@pytest.mark.parametrize("kinds", [0, 1, 2, 3])
def test_a_picture_of_any_number_of_kinds(tmp_path: Path, kinds: int) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(b"an older one")
    many = [f"codec{index}" for index in range(12)]
    draw(report(*(kind(number, *many) for number in range(kinds))), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width >= 1000
        shades = np.asarray(picture.convert("L"))
        assert shades.max() == 255
        assert shades.min() < 75


def test_the_same_report_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw(report(kind(1, "raw", "zstd", AUTO)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_drawing_leaves_no_figure_behind(tmp_path: Path) -> None:
    draw(report(kind(1, "raw")), tmp_path / "p.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConvertError, match=r"install tersor\[plot\]"):
        check_plot(tmp_path / "p.png")


@pytest.mark.parametrize("name", ["p.svg", "png", "none/p.png", "folder.png"])
def test_a_place_that_cannot_be_drawn_to(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DestinationError, match=name):
        check_plot(tmp_path / name)
