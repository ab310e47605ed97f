"""convert, inspect, verify, extract and eval, through the front door."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command import Command
from safetensors.torch import load_file

from tersor.cli.signals import stoppable


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def test_lossless_gives_back_every_bit_under_its_name(
    tersor: Command, pico_dir: Path, tmp_path: Path
) -> None:
    bundle, folder = tmp_path / "p.tersor", tmp_path / "d"
    assert tersor("convert", pico_dir, bundle, "--recipe", "lossless").code == 0
    assert tersor("extract", bundle, "--output", folder).code == 0
    original = load_file(pico_dir / "model.safetensors")
    returned = load_file(folder / "model.safetensors")
    assert set(returned) == set(original)
    for name, tensor in original.items():
        assert returned[name].dtype == tensor.dtype
        assert returned[name].shape == tensor.shape
        assert torch.equal(bits(returned[name]), bits(tensor)), name
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (pico_dir / name).read_bytes()


def test_float12_computes_what_lossless_does_on_a_cpu(
    tersor: Command, bundles: dict[str, Path], pico_dir: Path
) -> None:
    prompt = ("--prompt", "Once upon a time", "--max-tokens", "40")
    texts = [tersor("generate", bundles[name], *prompt) for name in ("lossless", "float12")]
    assert texts[0].code == texts[1].code == 0
    assert texts[0].out == texts[1].out != ""
    shown = tersor("inspect", bundles["float12"], "--tensors").out
    assert "float12" in shown
    assert "dense" in shown
    text = ("--text", pico_dir.parent / "pico-heldout.txt", "--max-tokens", "512", "--json")
    report = json.loads(tersor("eval", bundles["float12"], "--reference", pico_dir, *text).out)
    assert (report["kl_mean"], report["top1_agreement"]) == (0, 1)


def test_every_recipe_is_smaller_than_the_one_before(bundles: dict[str, Path]) -> None:
    sizes = [bundles[name].stat().st_size for name in ("lossless", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)


def test_pruned_zeros_make_the_bundle_smaller(
    tersor: Command, bundles: dict[str, Path], pico_dir: Path, tmp_path: Path
) -> None:
    pruned = tmp_path / "pruned.tersor"
    done = tersor("convert", pico_dir, pruned, "--recipe", "int8", "--prune", "magnitude:0.5")
    assert done.code == 0, done.err
    assert pruned.stat().st_size < 0.8 * bundles["int8"].stat().st_size


def test_convert_reports_what_it_did_as_json(
    tersor: Command, pico_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.tersor"
    report = json.loads(tersor("convert", pico_dir, out, "--recipe", "int4", "--json").out)
    assert report["bundle_bytes"] == out.stat().st_size
    assert report["recipe"] == "int4"


def test_convert_refuses_to_overwrite(tersor: Command, bundles: dict[str, Path]) -> None:
    taken = bundles["lossless"]
    before = taken.read_bytes()
    done = tersor("convert", "examples/pico", taken)
    assert done.code == 1
    assert str(taken) in done.err
    assert taken.read_bytes() == before


def test_inspect_shows_program_layouts_and_certificate(
    tersor: Command, bundles: dict[str, Path]
) -> None:
    shown = tersor("inspect", bundles["int4"])
    assert shown.code == 0
    assert "decoder (llama, 8 layers" in shown.out
    assert "int4" in shown.out
    listed = tersor("inspect", bundles["int4"], "--tensors")
    assert "layers.7.down" in listed.out
    document = json.loads(tersor("inspect", bundles["int4"], "--json").out)
    assert document["program"]["vocab_size"] == 4096
    assert document["certificate"]["tensors"]


def test_verify_names_what_is_damaged(
    tersor: Command, bundles: dict[str, Path], tmp_path: Path
) -> None:
    assert tersor("verify", *bundles.values()).code == 0
    data = bytearray(bundles["int8"].read_bytes())
    data[len(data) // 2] ^= 0x10
    altered = tmp_path / "altered.tersor"
    altered.write_bytes(data)
    done = tersor("verify", altered)
    assert done.code == 1
    assert "tensor" in done.err
    report = json.loads(tersor("verify", altered, "--json").out)[str(altered)]
    assert not report["ok"]
    assert report["damages"]


def test_eval_measures_quality_against_the_source(
    tersor: Command, bundles: dict[str, Path], pico_dir: Path
) -> None:
    text = pico_dir.parent / "pico-heldout.txt"
    arguments = ("--reference", pico_dir, "--text", text, "--max-tokens", "1024", "--json")
    exact = json.loads(tersor("eval", bundles["lossless"], *arguments).out)
    coarse = json.loads(tersor("eval", bundles["int4"], *arguments).out)
    assert exact["kl_mean"] == 0
    assert exact["top1_agreement"] == 1
    assert 0 < coarse["kl_mean"] < 0.02
    assert coarse["bits_per_byte"] < 1.05 * exact["bits_per_byte"]


WRONG = {
    "not a model folder": (("convert", "tests", "{tmp}/x.tersor"), 1),
    "no such source": (("convert", "nowhere", "{tmp}/x.tersor"), 1),
    "unknown recipe": (("convert", "examples/pico", "{tmp}/x.tersor", "--recipe", "int5"), 1),
    "unknown codec": (("convert", "examples/pico", "{tmp}/x.tersor", "--codec", "rar"), 1),
    "bad prune": (("convert", "examples/pico", "{tmp}/x.tersor", "--prune", "5:4"), 1),
    "not a bundle": (("inspect", "README.md"), 1),
    "no such bundle": (("verify", "nowhere.tersor"), 1),
    "a folder": (("extract", "tests", "--output", "{tmp}/d"), 1),
    "text that is not UTF-8": (("eval", "{lossless}", "--text", "{lossless}"), 1),
    "no such device": (("eval", "{lossless}", "--text", "README.md", "--device", "abacus"), 1),
    "prompt not UTF-8": (("generate", "{lossless}", "--prompt", "\udcff"), 1),
    "stop not UTF-8": (("generate", "{lossless}", "--prompt", "x", "--stop", "\udcff"), 1),
    "no text": (("eval", "{lossless}", "--text", "nowhere.txt"), 1),
    "not a decoder's option": (("convert", "examples/pico"), 2),
    "unknown option": (("inspect", "{lossless}", "--colour"), 2),
    "unknown command": (("compress",), 2),
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
    filled = [a.format(tmp=tmp_path, lossless=bundles["lossless"]) for a in arguments]
    done = tersor(*filled)
    assert done.code == code
    assert "Traceback" not in done.err
    if code == 1:
        assert re.match(r"error: (?!\[Errno)", done.err)
        assert done.err.count("\n") == 1
    assert not list(tmp_path.glob("*"))


def test_a_truncated_bundle_says_truncated(
    tersor: Command, bundles: dict[str, Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.tersor"
    cut.write_bytes(bundles["int4"].read_bytes()[:-1000])
    for command in (("inspect", cut), ("verify", cut), ("generate", cut, "--prompt", "x")):
        done = tersor(*command)
        assert done.code == 1
        assert "truncated" in done.err


def test_names_and_texts_beyond_the_encoding_of_stdout(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Bytes that are no text, a folder with a space, and a terminal that only knows ASCII."""
    folder = tmp_path / "ö ü"
    folder.mkdir()
    bundle = folder / "byte\udcff.tersor"
    shutil.copy(bundles["int4"], bundle)
    command = [sys.executable, "-m", "tersor.cli", "verify", str(bundle)]
    for encoding in ("ascii", "utf-8"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b".tersor: ok (" in done.stdout
        report = subprocess.run(
            [*command, "--json"], env=environment, capture_output=True, check=True
        )
        (path,) = json.loads(report.stdout)
        assert path == str(bundle)


def test_a_damaged_bundle_is_one_line_also_for_generate(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """In a process of its own: nothing of what a server would log repeats the error."""
    damaged = bytearray(bundles["int4"].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    bundle = tmp_path / "damaged.tersor"
    bundle.write_bytes(damaged)
    done = subprocess.run(
        [sys.executable, "-m", "tersor.cli", "generate", bundle, "--prompt", "x"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"error: [^\n]* is damaged: [^\n]*\n", done.stderr)


def test_a_closed_stdout_is_one_line(bundles: dict[str, Path]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$0" -m tersor.cli inspect "$1" >&-', sys.executable, bundles["int4"]],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1, "error: stdout is closed; expected somewhere to write the result to\n",
    )  # fmt: skip


def test_an_interrupt_while_the_libraries_load_is_no_traceback() -> None:
    """The interrupt comes from the first import of the command's modules."""
    program = (
        "import builtins, sys\n"
        "load = builtins.__import__\n"
        "def interrupted(name, *rest):\n"
        "    if name == 'typer':\n"
        "        raise KeyboardInterrupt\n"
        "    return load(name, *rest)\n"
        "builtins.__import__ = interrupted\n"
        "from tersor.cli.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_writing_leaves_nothing_behind(
    number: signal.Signals, tmp_path: Path, pico_dir: Path
) -> None:
    """The signal comes as soon as weights stand in the partial file."""
    bundle = tmp_path / "b.tersor"
    command = [sys.executable, "-m", "tersor.cli", "convert", str(pico_dir), str(bundle)]
    with subprocess.Popen([*command, "--recipe", "int4"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        until = time.monotonic() + 60
        while not any(file.stat().st_size > 100_000 for file in tmp_path.iterdir()):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(number)
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 128 + number
    assert not list(tmp_path.iterdir())


def test_an_error_that_a_signal_became_is_no_traceback() -> None:
    """Torch turns an exception out of a signal handler into a ValueError, now and then."""
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with contextlib.suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        raise ValueError("could not determine the shape")

    with pytest.raises(SystemExit) as stop, stoppable():
        work()
    assert stop.value.code == 130
    with pytest.raises(ValueError, match="an error of its own"), stoppable():
        raise ValueError("an error of its own")
    assert signal.getsignal(signal.SIGINT) is before
