"""Bundles behind a URL, through the front door."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from range_server import RangeServer, answers, range_server, unused_port

SECRET = "X-Signature=5ecr3t"
GREEDY = ("--prompt", "import os\nimport ", "--max-tokens", "12")


@pytest.fixture
def store(bundles: dict[str, Path]) -> Iterator[RangeServer]:
    with range_server({"/models/pico.tersor": bundles["int4"].read_bytes()}) as server:
        yield server


@pytest.fixture
def url(store: RangeServer) -> str:
    """Presigned, as object stores do."""
    return f"{store.url('/models/pico.tersor')}?{SECRET}"


def test_inspect_and_verify(
    tersor: Command, bundles: dict[str, Path], store: RangeServer, url: str
) -> None:
    for options in ((), ("--tensors",), ("--json",)):
        assert tersor("inspect", url, *options) == tersor("inspect", bundles["int4"], *options)
    shown = store.url("/models/pico.tersor")
    checked = tersor("verify", bundles["int4"], url)
    assert (checked.code, checked.err) == (0, "")
    local, remote = checked.out.splitlines()
    assert remote == local.replace(str(bundles["int4"]), shown)
    report = json.loads(tersor("verify", url, "--json").out)
    assert report[shown]["ok"]
    assert {request.query for request in store.requests} == {SECRET}


def test_diff_and_codecs(tersor: Command, bundles: dict[str, Path], url: str) -> None:
    found = json.loads(tersor("diff", bundles["int4"], url, "--json").out)
    assert found["same_content"]
    assert found["b"]["bundle"].endswith("/models/pico.tersor")
    measured = tersor("codecs", url, "--max-bytes", "1KiB", "--json")
    assert measured.code == 0, measured.err
    assert "5ecr3t" not in measured.out
    assert json.loads(measured.out)["source"].endswith("/models/pico.tersor")
    refused = tersor("codecs", url, "--recipe", "int8")
    assert refused.code == 1
    assert "5ecr3t" not in refused.err


def test_generate_gives_the_same_text(
    tersor: Command, bundles: dict[str, Path], store: RangeServer, url: str
) -> None:
    here = tersor("generate", bundles["int4"], *GREEDY)
    assert here.code == 0
    assert here.out
    assert tersor("generate", url, *GREEDY) == here
    size = len(store.objects["/models/pico.tersor"])
    read = sum(last - first + 1 for first, last in filter(None, store.asked))
    assert read < size + (1 << 20)  # every byte once, and the end, which opening looks at


def test_extract_and_eval(
    tersor: Command, bundles: dict[str, Path], url: str, tmp_path: Path, pico_dir: Path
) -> None:
    for name, place in (("here", bundles["int4"]), ("there", url)):
        assert tersor("extract", place, "--output", tmp_path / name).code == 0
    for file in (tmp_path / "here").rglob("*"):
        assert (tmp_path / "there" / file.name).read_bytes() == file.read_bytes()
    text = pico_dir.parent / "pico-heldout.txt"
    done = tersor(
        "eval", url, "--reference", url, "--text", text, "--max-tokens", "40", "--json"
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["top1_agreement"] == 1.0


def test_serve_names_the_model_after_the_last_segment(
    tersor: Command, bundles: dict[str, Path], url: str
) -> None:
    command = [sys.executable, "-m", "tersor.cli.main", "serve", url]
    ports = ["--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen([*command, *ports], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert line.startswith("serving pico: gRPC on port "), line
        port = line.split("port ")[1].split(",")[0]
        there = tersor("generate", url, "--server", f"127.0.0.1:{port}", *GREEDY)
        assert there == tersor("generate", bundles["int4"], *GREEDY)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
        assert server.stderr.read() == ""


def test_what_rewrites_a_file_takes_no_url(tersor: Command, url: str) -> None:
    for command in ("protect", "repair"):
        done = tersor(command, url)
        assert done.code == 2
        assert "is a URL; this command rewrites a file" in " ".join(done.err.split())
        assert "5ecr3t" not in done.err


def test_verify_says_how_to_repair_what_is_behind_a_url(
    tersor: Command, bundles: dict[str, Path], store: RangeServer, tmp_path: Path
) -> None:
    path = tmp_path / "p.tersor"
    assert tersor("protect", bundles["int4"], "--output", path).code == 0
    data = bytearray(path.read_bytes())
    for at in (5000, len(data) - 1):  # a chunk; then the footer, too
        data[at] ^= 1
        store.objects["/p.tersor"] = bytes(data)
        done = tersor("verify", f"{store.url('/p.tersor')}?{SECRET}")
        assert done.code == 1
        assert "download it, and `tersor repair` restores it" in done.err
        assert "5ecr3t" not in done.err


@pytest.mark.parametrize("command", ["inspect", "verify", "codecs", "generate", "serve"])
def test_what_goes_wrong_is_one_line_without_the_secret(
    tersor: Command, store: RangeServer, url: str, command: str
) -> None:
    options = {"generate": ("--prompt", "x")}.get(command, ())
    nobody = f"http://127.0.0.1:{unused_port()}/x.tersor?{SECRET}"
    for place, fault, message in (
        (url.replace("pico", "none"), None, "there is no such object"),
        (url, answers(403), "presign the URL"),
        (url, answers(200), "does not support ranges"),
        (f"s3://bucket/pico.tersor?{SECRET}", None, "not s3"),
        (f"http://me:5ecr3t@host/pico.tersor?{SECRET}", None, "holds a user name or a password"),
        (nobody.replace("127.0.0.1", "[::"), None, "its host or port is malformed"),
    ):
        store.every = fault
        done = tersor(command, place, *options)
        assert done.code == 1, done
        assert message in done.err
        assert "5ecr3t" not in done.err + done.out
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
