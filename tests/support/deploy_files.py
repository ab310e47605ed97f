"""The files under deploy/ as the tests read them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OPERATIONS = ROOT / "docs" / "operations.md"


def documents(path: Path) -> list[dict[str, Any]]:
    """Every YAML document of a file; duplicate keys raise."""
    with path.open(encoding="utf-8") as stream:
        return list(yaml.load_all(stream, Loader=_UniqueKeys))


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys; Kubernetes and Prometheus refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.YAMLError(f"{node.start_mark}: repeated keys {sorted(repeated)}")
        return super().construct_mapping(node, deep=deep)


def one(path: Path, kind: str, name: str = "") -> dict[str, Any]:
    """The document of that kind (and name) in a file."""
    found = [
        document
        for document in documents(path)
        if document["kind"] == kind and name in {"", document["metadata"]["name"]}
    ]
    assert len(found) == 1, (path, kind, name, len(found))
    return found[0]


@dataclass(slots=True)
class Instruction:
    """One instruction of a Dockerfile: the keyword, its text, and what `COPY`, `CMD` … name."""

    keyword: str
    text: str

    @property
    def flags(self) -> dict[str, str]:
        words = [word for word in self.text.split() if word.startswith("--")]
        return dict(word[2:].split("=", 1) for word in words)

    @property
    def words(self) -> list[str]:
        """Words after the flags, shell quoting undone."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


@dataclass(slots=True)
class Stage:
    """One `FROM` of a Dockerfile and what follows it."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, keyword: str) -> list[Instruction]:
        return [item for item in self.instructions if item.keyword == keyword]

    def last(self, keyword: str) -> Instruction:
        return self.all(keyword)[-1]


def parse_dockerfile(path: Path) -> tuple[list[Instruction], list[Stage]]:
    """The instructions before the first `FROM`, and the stages."""
    head: list[Instruction] = []
    stages: list[Stage] = []
    for line in _logical_lines(path.read_text(encoding="utf-8")):
        keyword, _, text = line.partition(" ")
        instruction = Instruction(keyword, text.strip())
        if keyword == "FROM":
            base, _, name = instruction.text.partition(" AS ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].instructions.append(instruction)
        else:
            head.append(instruction)
    return head, stages


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments, continuations joined."""
    joined = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        yield joined
        joined = ""
    assert not joined, "the last line continues into nothing"
