"""`tersor codecs`, and the options of `convert` that choose codecs, through the front door."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from command import Command
from tiny_bundles import write_tiny

from tersor.bundle.codecs import CODEC_NAMES
from tersor.bundle.encoding import DECODE_FLOOR_MB_PER_SECOND


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.tersor"
    write_tiny(path)
    return path


def test_a_table_for_each_kind(tersor: Command, tiny: Path) -> None:
    done = tersor("codecs", tiny)
    assert (done.code, done.err) == (0, "")
    head, *tables = done.out.split("\n\n")
    assert head.startswith(f"{tiny}, recipe lossless\nOne thread; ")
    assert "At most 64.0 MiB of each kind" in head
    assert {table.splitlines()[0] for table in tables} >= {
        "dense values bf16", "dense values i8", "dense values f32", "int4 codes u4",
        "int4 scales bf16",
    }  # fmt: skip
    for table in tables:
        _, measured, columns, *rows = table.strip().splitlines()
        assert re.search(r"\(all of it\) from \d of \d tensors; order-0 entropy", measured)
        assert columns.startswith("codec ")
        assert [row.split("  ")[0] for row in rows if not row.startswith("rans, ")] == [
            *CODEC_NAMES, "auto",
        ]  # fmt: skip


def test_a_model_s_planes_as_a_recipe_makes_them(tersor: Command, pico_dir: Path) -> None:
    done = tersor(
        "codecs", pico_dir, "--recipe", "int4", "--prune", "2:4", "--max-bytes", "4KiB", "--json"
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["recipe"] == "int4+2:4"
    assert document["max_bytes"] == 4096
    assert document["threads"] == 1
    kinds = {kind["name"]: kind for kind in document["kinds"]}
    assert {"int4 codes u4", "int4 scales bf16", "int8 codes i8", "dense values bf16"} <= set(kinds)
    codes = kinds["int4 codes u4"]
    assert codes["measured_bytes"] <= 1 << 20
    assert not codes["whole"]
    assert codes["entropy_ratio"] == pytest.approx(codes["entropy_bits"] / 8)
    sizes = {result["codec"]: result["bits_per_symbol"] for result in codes["results"]}
    # In pairs the pattern shows, so that a code may take a little less than the order-0 entropy.
    assert 0.95 * codes["entropy_bits"] < sizes["auto"] < 3 < sizes["raw"] == 4
    assert all(result["decode_mb_per_second"] > 0 for result in codes["results"])


def test_the_picture(tersor: Command, tiny: Path, tmp_path: Path) -> None:
    picture = tmp_path / "codecs.png"
    assert tersor("codecs", tiny, "--plot", picture).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


WRONG = {
    "no such place": (("codecs", "nowhere"), 1, "nowhere"),
    "not a bundle": (("codecs", "README.md"), 1, "not a bundle"),
    "not a model": (("codecs", "tests"), 1, "config.json"),
    "a recipe for a bundle": (("codecs", "{tiny}", "--recipe", "int8"), 1, "leave the recipe out"),
    "pruning a bundle": (("codecs", "{tiny}", "--prune", "2:4"), 1, "leave the recipe out"),
    "no such recipe": (("codecs", "examples/pico", "--recipe", "int5"), 1, "int5"),
    "no bytes": (("codecs", "{tiny}", "--max-bytes", "0"), 2, "--max-bytes"),
    "no size": (("codecs", "{tiny}", "--max-bytes", "much"), 2, "--max-bytes"),
    "not a png": (("codecs", "{tiny}", "--plot", "{tmp}/p.svg"), 1, ".png"),
    "nowhere to draw": (("codecs", "{tiny}", "--plot", "{tmp}/none/p.png"), 1, "does not exist"),
    "no number": (("convert", "{pico}", "{tmp}/x", "--min-decode-speed", "nan"), 1, "nan MB/s"),
    "negative": (("convert", "{pico}", "{tmp}/x", "--min-decode-speed", "-1"), 1, "-1.0 MB/s"),
    "endless": (("convert", "{pico}", "{tmp}/x", "--min-decode-speed", "inf"), 1, "inf MB/s"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_gives_one_clear_line(
    tersor: Command,
    tiny: Path,
    pico_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(pico_dir.parent.parent)
    done = tersor(*(a.format(tmp=tmp_path, tiny=tiny, pico=pico_dir) for a in arguments))
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_nothing_is_measured_in_vain(
    tersor: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = tersor("codecs", tiny, "--plot", tmp_path / "p.png")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: drawing needs matplotlib; install tersor[plot].\n"


def test_convert_names_every_codec_and_the_speed_it_asks_for(tersor: Command) -> None:
    text = " ".join(tersor("convert", "--help").out.split())
    assert ", ".join(CODEC_NAMES) in text
    assert f"[default: {DECODE_FLOOR_MB_PER_SECOND}]" in text


def test_a_faster_bundle_is_larger(tersor: Command, pico_dir: Path, tmp_path: Path) -> None:
    """Without a floor rans takes columns apart; above every codec's speed all is raw."""
    sizes = []
    for speed in ("0", "400", "100000"):
        out = tmp_path / f"{speed}.tersor"
        done = tersor("convert", pico_dir, out, "--min-decode-speed", speed, "--json")
        sizes.append(json.loads(done.out)["bundle_bytes"])
    assert sizes == sorted(set(sizes))
    assert sizes[2] > 14_000_000
