"""Prometheus' own judgement of the configuration, the rules and the dashboard's queries."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from deploy_files import DEPLOY, documents

PROMETHEUS = DEPLOY / "prometheus"

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(
        shutil.which("promtool") is None, reason="needs promtool, from Debian's prometheus package"
    ),
]


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_is_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_the_rules_are_valid() -> None:
    (document,) = documents(PROMETHEUS / "rules" / "tersor.yml")
    count = sum(len(group["rules"]) for group in document["groups"])
    assert f"{count} rules found" in promtool(
        "check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "rules" / "tersor.yml"
    )


def test_the_alerts_fire_when_they_should() -> None:
    for path in sorted((PROMETHEUS / "tests").glob("*.yml")):
        assert "SUCCESS" in promtool("test", "rules", path)


def test_the_queries_of_the_dashboard_parse(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "tersor.json").read_text("utf-8"))
    queries = [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    assert len(queries) > 40
    rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", path)


def test_the_query_of_the_autoscaler_parses(tmp_path: Path) -> None:
    (scaled,) = documents(DEPLOY / "kubernetes" / "components" / "keda" / "scaledobject.yaml")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    rules = {"groups": [{"name": "keda", "rules": [{"record": "keda:query", "expr": query}]}]}
    path = tmp_path / "keda.yml"
    path.write_text(yaml.safe_dump(rules))
    promtool("check", "rules", path)
