"""docs/api.md says what is served, and its examples run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, message_factory
from grpc_health.v1 import health_pb2
from running_server import RunningServer

from tersor.protos.inference import grpc_service_pb2
from tersor.protos.tersor.v1 import generation_pb2
from tersor.runtime.server.decoder_request import OUTPUTS, input_datatypes
from tersor.runtime.server.sampling import sampling_names
from tersor.runtime.server.server import SERVICES
from tersor.runtime.server.status import STATUS_CODES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "api.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def table_names(heading: str) -> set[str]:
    """Every code word in the first two columns of the table that begins with `heading`."""
    table = PAGE[PAGE.index(heading) :].split("\n\n")[0]
    cells = [cell for row in table.splitlines()[2:] for cell in row.split("|")[1:3]]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples_run(real: RunningServer, block: str) -> None:
    script = block.replace("localhost:8001", real.address)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def service(name: str) -> Any:  # Any: protobuf and its users name two descriptor classes
    files = (grpc_service_pb2.DESCRIPTOR, generation_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    found = [s for file in files for s in file.services_by_name.values() if s.full_name == name]
    return found[0]


def test_shell_examples_name_methods_and_fields_that_exist() -> None:
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    calls = [command for command in commands if command[0] == "grpcurl"]
    assert len(calls) == 4
    for call in calls:
        name, _, method = call[-1].partition("/")
        kind = service(name).methods_by_name[method].input_type
        body = call[call.index("-d") + 1] if "-d" in call else "{}"
        json_format.Parse(body, message_factory.GetMessageClass(kind)())


def test_json_examples_are_json() -> None:
    for block in blocks("json"):
        assert json.loads(block)["data"]


def test_every_service_input_output_and_parameter_is_documented() -> None:
    assert set(SERVICES) < table_names("| service |")
    inputs = set(input_datatypes()) - set(sampling_names())
    assert table_names("| input |") == inputs
    assert table_names("| output |") == set(OUTPUTS)
    assert table_names("| parameter | also") == set(sampling_names())


def test_every_status_is_documented() -> None:
    table = PAGE[PAGE.index("| status | when |") :]
    documented = set(re.findall(r"^\| ([A-Z_]+) \|", table, re.MULTILINE))
    assert documented == {code.name for code in STATUS_CODES.values()}
