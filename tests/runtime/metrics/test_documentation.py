"""The table of docs/metrics.md against the registry, both ways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from tersor.runtime.engine.types import FinishReason
from tersor.runtime.metrics import Metrics
from tersor.runtime.metrics.observers import failure_reasons

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
UNITS = {"seconds", "bytes", "ratio", "info", "total", "capacity", "ready", "value"}


class Row(NamedTuple):
    kind: str
    labels: tuple[str, ...]


def documented() -> dict[str, Row]:
    rows = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith("`tersor_"):
            name, kind, labels, unit, meaning = cells
            assert unit, f"{name} has no unit"
            assert meaning, f"{name} has no meaning"
            assert name.strip("`") not in rows, f"{name} is documented twice"
            rows[name.strip("`")] = Row(kind, tuple(filter(None, re.split(r",\s*", labels))))
    return rows


def registered() -> dict[str, Row]:
    registry = CollectorRegistry()
    Metrics(registry)
    rows = {}
    for collector in registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            kind = str(collector._type)
            suffix = "_total" if kind == "counter" else ""
            rows[collector._name + suffix] = Row(kind, tuple(collector._labelnames))
    return rows


def test_every_metric_is_documented_as_it_is() -> None:
    assert documented() == registered()


def test_reasons_are_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for reason in (*failure_reasons(), *(reason.value for reason in FinishReason)):
        assert f"`{reason}`" in text


def test_names_carry_prefix_and_base_unit() -> None:
    for name, row in registered().items():
        assert re.fullmatch(r"tersor_[a-z0-9_]+", name)
        assert not re.search(r"_(ms|milliseconds|us|mb|mib|percent)(_|$)", name)
        if row.kind == "counter":
            assert name.endswith("_total")
        else:
            assert not name.endswith("_total")
