"""convert --parity, protect, verify and repair, through the front door."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import Command
from damage import damage_block, geometry_in, overwrite


@pytest.fixture
def protected(tersor: Command, bundles: dict[str, Path], tmp_path: Path) -> Path:
    """Pico as int4, with parity of 5 %."""
    path = tmp_path / "p.tersor"
    done = tersor("protect", bundles["int4"], "--output", path)
    assert done.code == 0, done.err
    return path


def change(path: Path, start: int, size: int) -> None:
    data = bytearray(path.read_bytes())
    overwrite(data, start, size)
    path.write_bytes(data)


def beyond(path: Path) -> None:
    """Damages one block too many in each of two stripes, and the header."""
    geometry, data = geometry_in(path), bytearray(path.read_bytes())
    for stripe in (0, 2):
        blocks = range(stripe, geometry.blocks, geometry.stripes)
        for block in blocks[3 : geometry.parity_blocks + 4]:
            damage_block(data, geometry, block, at=1000)
    path.write_bytes(data)


def test_convert_with_parity_is_convert_and_then_protect(
    tersor: Command, pico_dir: Path, protected: Path, tmp_path: Path
) -> None:
    at_once = tmp_path / "q.tersor"
    done = tersor("convert", pico_dir, at_once, "--recipe", "int4", "--parity", "5%")
    assert done.code == 0, done.err
    assert at_once.read_bytes() == protected.read_bytes()


def test_protect_reports_what_it_did(
    tersor: Command, bundles: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "p.tersor"
    shutil.copy(bundles["int4"], path)
    report = json.loads(tersor("protect", path, "--parity", "10%", "--json").out)
    assert report["bundle"] == str(path)
    assert report["file_bytes"] == path.stat().st_size
    assert report["replaced"] is False
    assert report["parity"]["parity_blocks"] / report["parity"]["data_blocks"] >= 0.1
    growth = path.stat().st_size / bundles["int4"].stat().st_size
    assert 1.1 < growth < 1.16
    done = tersor("protect", path, "--parity", "0.5%")
    assert done.code == 0
    assert "in place of other parity" in done.out


def test_verify_says_what_can_be_repaired(tersor: Command, protected: Path) -> None:
    assert "parity 5." in tersor("verify", protected).out
    assert re.search(r"parity +\d+ blocks for \d+, 4\.0 KiB each", tersor("inspect", protected).out)
    change(protected, protected.stat().st_size // 2, 20)
    done = tersor("verify", protected)
    assert done.code == 1
    first, second = done.err.splitlines()
    assert f"`tersor repair {protected}` restores it" in first
    assert "1 of " in first
    assert "chunk" in second
    assert "tensor layers." in second
    assert "; group layers." in second
    report = json.loads(tersor("verify", protected, "--json").out)[str(protected)]
    assert report["ok"] is False
    assert report["damages"][0]["groups"][0].startswith("layers.")
    assert report["parity"]["repairable"] is True
    assert report["parity"]["damaged_blocks"] == 1


def test_verify_points_to_repair_where_it_cannot_read(
    tersor: Command, bundles: dict[str, Path], protected: Path, tmp_path: Path
) -> None:
    whole = protected.read_bytes()
    for start, size in ((0, 64), (len(whole) - 5000, 5000)):
        protected.write_bytes(whole)
        change(protected, start, size)
        done = tersor("verify", protected)
        assert done.code == 1
        assert done.err.count("\n") == 1
        assert f"`tersor repair {protected}` restores it" in done.err
        report = json.loads(tersor("verify", protected, "--json").out)[str(protected)]
        assert report["error"]
        assert report["parity"]["repairable"] is True
        assert tersor("repair", protected).code == 0
        assert protected.read_bytes() == whole
    cut = tmp_path / "cut.tersor"
    cut.write_bytes(bundles["int4"].read_bytes()[:-10])
    done = tersor("verify", cut)
    assert "parity" not in done.err


def test_verify_without_parity_says_so(
    tersor: Command, bundles: dict[str, Path], tmp_path: Path
) -> None:
    assert "no parity" in tersor("verify", bundles["int4"]).out
    path = tmp_path / "p.tersor"
    shutil.copy(bundles["int4"], path)
    change(path, 5000, 1)
    assert "there is no parity to repair it by" in tersor("verify", path).err
    report = json.loads(tersor("verify", path, "--json").out)[str(path)]
    assert report["parity"] is None


def test_repair_restores_and_reports(tersor: Command, protected: Path, tmp_path: Path) -> None:
    whole = protected.read_bytes()
    done = tersor("repair", protected)
    assert (done.code, done.err) == (0, "")
    assert "nothing is damaged" in done.out
    change(protected, 70_000, len(whole) // 50)
    damaged = protected.read_bytes()
    other = tmp_path / "other.tersor"
    report = json.loads(tersor("repair", protected, "--output", other, "--json").out)
    assert report["ok"] is True
    assert report["output"] == str(other)
    assert report["restored_blocks"] == report["parity"]["damaged_blocks"] > 3
    assert other.read_bytes() == whole
    assert protected.read_bytes() == damaged
    done = tersor("repair", protected)
    assert done.code == 0
    assert "restored" in done.out
    assert protected.read_bytes() == whole
    protected.write_bytes(whole[:-100])
    assert (
        f"the file had {len(whole) - 100} bytes of {len(whole)}" in tersor("repair", protected).out
    )


def test_repair_refuses_and_lists_what_is_lost(tersor: Command, protected: Path) -> None:
    beyond(protected)
    before = protected.read_bytes()
    done = tersor("repair", protected)
    assert (done.code, done.out) == (1, "")
    assert "stripe 0 has" in done.err
    assert "1 too many" in done.err
    lost = [line for line in done.err.splitlines() if line.startswith("error: lost: chunk")]
    assert lost
    assert all("tensor" in line and "group" in line for line in lost)
    answer = tersor("repair", protected, "--json")
    report = json.loads(answer.out)
    assert answer.code == 1
    assert report["ok"] is False
    assert [item["stripe"] for item in report["parity"]["lost_stripes"]] == [0, 2]
    assert len(report["lost"]) == len(lost)
    assert protected.read_bytes() == before
    verified = tersor("verify", protected)
    assert "too many to restore it" in verified.err
    assert "stripe 2 has" in verified.err


WRONG = {
    "no percent sign": (("protect", "{bundle}", "--parity", "5"), 2),
    "too little": (("protect", "{bundle}", "--parity", "0.1%"), 2),
    "too much": (("protect", "{bundle}", "--parity", "51%"), 2),
    "no number": (("convert", "examples/pico", "{tmp}/x.tersor", "--parity", "nan%"), 2),
    "no such bundle": (("protect", "nowhere.tersor"), 1),
    "nothing to repair": (("repair", "nowhere.tersor"), 1),
    "not a bundle": (("protect", "README.md"), 1),
    "no bundle to repair": (("repair", "README.md"), 1),
    "a folder": (("repair", "tests"), 1),
    "no parity": (("repair", "{bundle}"), 1),
    "output is taken": (("protect", "{bundle}", "--output", "README.md"), 1),
    "output is a folder": (("protect", "{bundle}", "--output", "tests", "--force"), 1),
    "output has no folder": (("protect", "{bundle}", "--output", "{tmp}/no/x.tersor"), 1),
}


@pytest.mark.parametrize(("arguments", "code"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_gives_one_clear_line(
    tersor: Command,
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pico_dir: Path,
    arguments: tuple[str, ...],
    code: int,
) -> None:
    monkeypatch.chdir(pico_dir.parent.parent)
    before = bundles["int4"].read_bytes()
    done = tersor(*(part.format(tmp=tmp_path, bundle=bundles["int4"]) for part in arguments))
    assert done.code == code
    assert "Traceback" not in done.err
    if code == 1:
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert bundles["int4"].read_bytes() == before


def test_a_signal_while_protecting_leaves_the_bundle_as_it_was(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "p.tersor"
    shutil.copy(bundles["lossless"], path)
    before = path.read_bytes()
    command = [sys.executable, "-m", "tersor.cli", "protect", str(path), "--parity", "50%"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        until = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
