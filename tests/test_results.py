"""The page of results: what it says with and without measurements."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
MADE = {"machine": "a machine", "torch": "2.11.0", "commit": "abc"}


@pytest.fixture
def plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with an empty folder of results."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import plots as module

    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "PICTURES", tmp_path)
    monkeypatch.setattr(module, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(sys, "argv", ["plots.py"])
    return module


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *MADE])
        writer.writeheader()
        writer.writerows({**row, **MADE} for row in rows)


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "plots.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_was_not_measured_says_so(plots: ModuleType, tmp_path: Path) -> None:
    assert plots.main() == 0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text.count("**Not measured yet**: there is no `") == len(plots.SECTIONS)
    assert "**Not measured yet**: there is no `gpu_matmul.csv`." in text
    assert "|" not in text
    assert not list(tmp_path.glob("*.svg"))


def test_what_was_measured_is_shown_and_drawn(plots: ModuleType, tmp_path: Path) -> None:
    product = {"shape": "o", "n": 4096, "k": 4096}
    _write(
        tmp_path / "gpu_matmul.csv",
        [
            product | {"form": form, "batch": batch, "microseconds": 10 * batch,
                       "share_of_copy_bandwidth": 0.5}
            for form, batch in (("cuBLAS bf16", 8), ("cuBLAS bf16", 1), ("tersor int8", 1))
        ],
    )  # fmt: skip
    paths = {"n": 8, "k": 8, "layout": "int8"}
    _write(
        tmp_path / "cpu_matmul.csv",
        [
            paths | {"m": m, "path": path, "milliseconds": m + 1, "taken": path == "packed"}
            for m in (1, 4)
            for path in ("packed", "decoded")
        ],
    )
    assert plots.main() == 0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| form | M = 1 | M = 8 |\n|---|---|---|\n| cuBLAS bf16 | 10 us, 50 % |" in text
    assert "| tersor int8 | 10 us, 50 % |  |" in text
    assert "| 4 | **5** | 5 |" in text
    assert "a machine, torch 2.11.0, commit abc; `gpu_matmul.csv`." in text
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert set(first) == {"gpu_matmul.svg", "cpu_matmul.svg"}
    assert plots.main() == 0
    assert first == {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}


def test_a_page_that_is_out_of_date_is_found(
    plots: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plots.main() == 0
    monkeypatch.setattr(sys, "argv", ["plots.py", "--check"])
    assert plots.main() == 0
    plots.PAGE.write_text("old", encoding="utf-8")
    assert plots.main() == 1
    assert "run `make results`" in capsys.readouterr().err
