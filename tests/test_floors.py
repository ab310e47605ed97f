"""The floors of the architecture, and what importing a room may not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "bundle": 1,
    "kernels": 1,
    "protos": 1,
    "models": 2,
    "converters": 3,
    "runtime": 3,
    "cli": 4,
}
# Libraries that have no business in a room.
FORBIDDEN = {
    "bundle": {"torch", "triton", "transformers", "grpc", "prometheus_client"},
    "kernels": {"transformers", "grpc", "prometheus_client", "safetensors", "tokenizers"},
    "models": {"transformers", "grpc", "prometheus_client"},
    "runtime": {"transformers", "tritonclient"},
}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of every module that `path` imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", sorted(FLOORS))
def test_a_room_imports_only_from_the_floors_below_it(room: str) -> None:
    wrong = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] == "tersor":
                target = parts[1]
                if target != room and FLOORS[target] >= FLOORS[room]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
            elif parts[0] in FORBIDDEN.get(room, set()):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(wrong)


IMPORT_EVERYTHING = """
import importlib, pkgutil, sys, threading

import prometheus_client, torch
collectors = set(prometheus_client.REGISTRY._collector_to_names)
threads = set(threading.enumerate())
for room in sys.argv[1:]:
    package = importlib.import_module(f"tersor.{room}")
    for info in pkgutil.walk_packages(package.__path__, f"tersor.{room}."):
        if info.name.endswith(("__main__", "protos.generate")):
            continue
        importlib.import_module(info.name)
assert set(prometheus_client.REGISTRY._collector_to_names) == collectors, "a metric was registered"
assert set(threading.enumerate()) == threads, "a thread was started"
assert not torch.cuda.is_initialized(), "CUDA was initialised"
assert "transformers" not in sys.modules, "transformers was imported"
"""


def test_importing_starts_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_EVERYTHING, *sorted(FLOORS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "tests",
    )
    assert done.returncode == 0, done.stderr


def test_files_stay_small() -> None:
    limit = 400
    generated = ("_pb2.py", "_pb2_grpc.py")
    long = [
        f"{path.relative_to(ROOT)}: {count} lines"
        for room in (*FLOORS, "tests", "benchmarks", "deploy", "examples")
        for path in sorted((ROOT / room).rglob("*.py"))
        if not path.name.endswith(generated)
        and (count := len(path.read_text(encoding="utf-8").splitlines())) > limit
    ]
    assert not long, "\n".join(long)
