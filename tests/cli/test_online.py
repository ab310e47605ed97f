"""generate and serve, through the front door."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from running_server import free_ports, running_server

PROMPT = "import os\nimport "
GREEDY = ("--prompt", PROMPT, "--max-tokens", "12")
SAMPLED = (*GREEDY, "--temperature", "0.9", "--top-p", "0.95", "--seed", "7")


@pytest.fixture(scope="module")
def address(bundles: dict[str, Path]) -> Iterator[str]:
    with running_server(free_ports(models=(bundles["int4"],))) as server:
        yield server.address


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_here_and_by_a_server_give_the_same_text(
    tersor: Command, bundles: dict[str, Path], address: str, options: tuple[str, ...]
) -> None:
    here = tersor("generate", bundles["int4"], *options)
    there = tersor("generate", bundles["int4"], "--server", address, *options)
    assert (here.code, here.err) == (0, "")
    assert here.out
    assert there == here


def test_the_prompt_may_come_from_stdin(
    tersor: Command, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompt = tmp_path / "prompt.py"
    prompt.write_text(PROMPT, encoding="utf-8")
    with prompt.open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        piped = tersor("generate", bundles["int4"], "--prompt", "-", "--max-tokens", "12")
    assert piped == tersor("generate", bundles["int4"], *GREEDY)


def test_a_stop_string_ends_the_text_before_it(tersor: Command, bundles: dict[str, Path]) -> None:
    whole = tersor("generate", bundles["int4"], *GREEDY).out
    stop = whole[5:8]
    cut = tersor("generate", bundles["int4"], *GREEDY, "--stop", stop).out
    assert cut == whole[: whole.index(stop)]


def test_what_a_server_refuses_is_one_line(tersor: Command, address: str) -> None:
    for options, expected in (
        (("nobody", "--prompt", "x"), "NOT_FOUND"),
        (("pico-int4", "--prompt", "x", "--max-tokens", "0"), "INVALID_ARGUMENT"),
        (("pico-int4", "--prompt", "x" * 30000), "INVALID_ARGUMENT"),
    ):
        done = tersor("generate", *options, "--server", address)
        assert done.code == 1
        assert done.err.startswith(f"error: {expected}: ")
        assert done.err.count("\n") == 1


def test_wrong_configuration_is_wrong_usage(tersor: Command, bundles: dict[str, Path]) -> None:
    for options in (
        ("--memory-budget", "much"),
        ("--device", "abacus"),
        ("--grpc-port", "70000"),
        ("--max-batch-size", "0"),
        ("--activations", "fp8"),
        ("--kv-cache-dtype", "fp8"),
    ):
        done = tersor("serve", bundles["int4"], *options)
        assert done.code == 2, options
        assert done.err.startswith("error: ")
        assert "Traceback" not in done.err


def test_serve_announces_drains_and_ends(bundles: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "tersor.cli.main", "serve", str(bundles["int4"])]
    ports = ["--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen([*command, *ports], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        match = re.fullmatch(
            r"serving pico-int4: gRPC on port (\d+), metrics on http://localhost:\d+/metrics\n",
            line,
        )
        assert match is not None, line
        taken = subprocess.run(
            [*command, "--host", "127.0.0.1", "--grpc-port", match.group(1), "--metrics-port", "0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert taken.returncode == 1
        assert f"127.0.0.1:{match.group(1)}" in taken.stderr
        assert taken.stderr.count("\n") == 1
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
        assert server.stderr.read() == ""
