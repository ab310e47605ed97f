"""`tersor diff`, through the front door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command
from tiny_bundles import add, weights, write_tiny, writer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles of tensors by the same names; two in five changed."""
    folder = tmp_path_factory.mktemp("pair")
    paths = folder / "a.tersor", folder / "b.tersor"
    for number, path in enumerate(paths):
        with writer(
            path, recipe={"name": f"r{number}", "odd\u0085key": "\u001b[31m"[number:]}
        ) as to:
            for index in range(5):
                add(
                    to,
                    f"t{index}",
                    "bf16",
                    weights((32, 32), seed=index + 9 * number * (index > 2)),
                )
            add(to, f"only{number}", "bf16", weights((8, 8)))
            to.commit()
    return paths


def test_people_get_totals_changes_and_fields(tersor: Command, pair: tuple[Path, Path]) -> None:
    done = tersor("diff", *pair)
    assert (done.code, done.err) == (0, "")
    text = " ".join(done.out.split())
    assert "content: different; whoever has A lacks" in text
    assert "tensors: 3 equal, 2 changed, 1 only in A, 1 only in B" in text
    assert "t3, t4: planes values" in text
    assert "only in A: only0" in text
    assert 'recipe.name "r0" "r1"' in text


def test_a_stranger_s_text_cannot_steer_the_terminal(
    tersor: Command, pair: tuple[Path, Path]
) -> None:
    out = tersor("diff", *pair).out
    assert "recipe.odd\\u0085key" in out
    assert "\\u001b[31m" in out
    assert all(character.isprintable() or character == "\n" for character in out)


def test_the_document_has_everything(tersor: Command, pair: tuple[Path, Path]) -> None:
    document = json.loads(tersor("diff", *pair, "--json").out)
    assert document["a"]["bundle"] == str(pair[0])
    assert document["b"]["file_bytes"] == pair[1].stat().st_size
    assert document["tensors"]["equal"] == ["t0", "t1", "t2"]
    assert [change["name"] for change in document["tensors"]["changed"]] == ["t3", "t4"]
    assert document["planes"]["a"]["count"] == 4  # the equal ones and only0, which is only1
    assert 0 < document["chunks"]["b"]["share"] < 1
    assert {"field": "recipe.name", "a": "r0", "b": "r1"} in document["fields"]


def test_long_lists_are_cut_for_people_only(tersor: Command, tmp_path: Path) -> None:
    for name, recipe in (("a", {}), ("b", {f"key{index}": index for index in range(30)})):
        write_tiny(tmp_path / name, recipe=recipe)
    shown = tersor("diff", tmp_path / "a", tmp_path / "b").out
    assert "key19" in shown
    assert "key20" not in shown
    assert "… and 10 more; --json lists them all" in shown
    document = json.loads(tersor("diff", tmp_path / "a", tmp_path / "b", "--json").out)
    assert len(document["fields"]) == 30


def test_equal_bundles_end_with_0_too(tersor: Command, pair: tuple[Path, Path]) -> None:
    done = tersor("diff", pair[0], pair[0])
    assert done.code == 0
    assert "content: equal; whoever has A lacks" in done.out
    assert "field" not in done.out


@pytest.mark.parametrize("place", [0, 1], ids=["A", "B"])
@pytest.mark.parametrize("bad", ["README.md", "nowhere.tersor", "tests"])
def test_what_cannot_be_read_is_one_line(
    tersor: Command,
    pair: tuple[Path, Path],
    pico_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: str,
    place: int,
) -> None:
    monkeypatch.chdir(pico_dir.parent.parent)
    arguments: list[object] = list(pair)
    arguments[place] = bad
    done = tersor("diff", *arguments)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert bad in done.err
    assert done.err.count("\n") == 1


def test_one_bundle_is_wrong_usage(tersor: Command, pair: tuple[Path, Path]) -> None:
    assert tersor("diff", pair[0]).code == 2
