"""The operations page: its numbers, names and options are those of the files and the command."""

from __future__ import annotations

import re

import pytest
from deploy_files import DEPLOY, OPERATIONS, ROOT, one, parse_dockerfile
from metric_space import samples
from metric_use import alerts
from serve_arguments import parse

from tersor.bundle.plane_loader import MAX_RUN_BYTES
from tersor.bundle.sources.http_answers import TRIED_AGAIN
from tersor.bundle.sources.http_settings import HttpSettings
from tersor.runtime.config import ServerConfig, parse_bytes

TEXT = OPERATIONS.read_text(encoding="utf-8")
DEFAULTS = ServerConfig(models=())


def rows(first: str) -> dict[str, list[str]]:
    """The table whose first column is headed `first`: first cell -> the other cells."""
    start = TEXT.index(f"| {first} |")
    table: dict[str, list[str]] = {}
    for line in TEXT[start:].splitlines()[2:]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        table[name.strip("`")] = cells
    return table


def section(title: str) -> str:
    return TEXT.split(f"\n{title}\n", 1)[1].split("\n#", 1)[0]


def test_every_alert_is_explained_and_no_other() -> None:
    explained = re.findall(r"^### (Tersor\w+)$", TEXT, re.MULTILINE)
    assert explained == [rule["alert"] for rule in alerts()]
    for name in explained:
        assert len(section(f"### {name}")) > 60, name


def test_alerts_mentioned_exist() -> None:
    assert set(re.findall(r"\bTersor[A-Z]\w+", TEXT)) == {rule["alert"] for rule in alerts()}


def test_ports_are_the_defaults() -> None:
    assert list(rows("port")) == [str(DEFAULTS.grpc_port), str(DEFAULTS.metrics_port)]


def test_times_are_those_of_the_manifests() -> None:
    base = one(DEPLOY / "kubernetes/base/deployment.yaml", "Deployment")["spec"]["template"]["spec"]
    runtime = one(DEPLOY / "kserve/servingruntime.yaml", "ServingRuntime")["spec"]
    service = one(DEPLOY / "kserve/inferenceservice.yaml", "InferenceService")["spec"]
    containers = [base["containers"][0], runtime["containers"][0]]
    sleeps = [item["lifecycle"]["preStop"]["sleep"]["seconds"] for item in containers]
    drains = [parse(item["args"]).drain_seconds for item in containers]
    graces = [
        base["terminationGracePeriodSeconds"],
        service["predictor"]["terminationGracePeriodSeconds"],
    ]
    table = rows("setting")
    assert table["preStop` sleep"][:2] == [f"{n} s" for n in sleeps]
    assert table["--drain-seconds"][:2] == [f"{n:g} s" for n in drains]
    assert table["terminationGracePeriodSeconds"][:2] == [f"{n} s" for n in graces]


def test_patience_of_the_probes() -> None:
    container = one(DEPLOY / "kubernetes/base/deployment.yaml", "Deployment")["spec"]["template"][
        "spec"
    ]["containers"][0]
    patience = {
        kind: container[f"{kind}Probe"]["periodSeconds"]
        * container[f"{kind}Probe"]["failureThreshold"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert patience == {"startup": 300, "readiness": 10, "liveness": 60}
    words = " ".join(section("## Ports and probes").split())
    assert "a startup probe that waits five minutes" in words
    assert "a readiness probe that gives up after 10 s" in words
    assert "a liveness probe that gives up after 60 s" in words


def test_memory_options_have_the_documented_defaults() -> None:
    table = rows("option")
    engine = DEFAULTS.engine
    assert DEFAULTS.memory_budget_bytes is None
    assert table["--memory-budget"][0] == "80 % of the device's memory"
    assert parse_bytes(table["--kv-cache"][0]) == engine.kv_cache_bytes
    assert table["--kv-cache-dtype"][0] == engine.kv_cache_dtype
    assert int(table["--host-cache"][0]) == DEFAULTS.host_cache_bytes


def test_every_option_named_exists() -> None:
    values = {
        "--device": ["cpu"],
        "--host-cache": ["1GiB"],
        "--kv-cache": ["1GiB"],
        "--kv-cache-dtype": ["int8"],
        "--memory-budget": ["1GiB"],
        "--preload": [],
    }
    named = set(re.findall(r"`(--[a-z-]+)[ `]", TEXT))
    assert set(values) <= named
    words = [word for option in sorted(named) for word in (option, *values.get(option, ["7"]))]
    parse(["serve", "/models", *words])


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tersor_[a-z_]+)`", TEXT))))
def test_every_metric_named_is_exposed(name: str) -> None:
    assert any(sample in samples() for sample in (name, f"{name}_count"))


def test_every_path_named_exists() -> None:
    for path in set(re.findall(r"`((?:deploy|docs)/[\w./-]+)`", TEXT)):
        assert (ROOT / path).exists(), path
    for path in set(re.findall(r"(?:-f|-k|file=|python) ?(deploy/[\w./-]+)", TEXT)):
        assert (ROOT / path).exists(), path
    for component in set(re.findall(r"`components/(\w+)`", TEXT)):
        assert (DEPLOY / "kubernetes" / "components" / component).is_dir(), component


def test_panels_quoted_are_on_the_dashboard() -> None:
    shown = (DEPLOY / "grafana" / "tersor.json").read_text(encoding="utf-8")
    text = " ".join(TEXT.split())
    for title in re.findall(r'"([A-Z][a-z, ]+)"', text):
        assert f'"title": "{title}"' in shown, title


def test_build_arguments_are_those_of_the_dockerfile() -> None:
    head, stages = parse_dockerfile(DEPLOY / "container" / "Dockerfile")
    declared = {
        item.text.partition("=")[0]
        for item in [*head, *(item for stage in stages for item in stage.all("ARG"))]
    }
    documented = {name for cell in rows("build argument") for name in re.findall(r"[A-Z_]+", cell)}
    assert documented == declared
    assert rows("build argument")["PYTHON_IMAGE"][0].strip("`") in {
        item.text.partition("=")[2] for item in head
    }


def test_patience_with_object_stores_is_that_of_the_source() -> None:
    text = " ".join(section("## Bundles in an object store").split())
    settings = HttpSettings()
    assert f"at most {settings.max_attempts} requests for one read" in text
    pauses = f"from {settings.backoff_seconds:g} s to {settings.max_backoff_seconds:g} s"
    assert f"pauses that double {pauses}" in text
    assert f"at most {settings.max_retry_after_seconds:g} s more" in text
    assert f"each {MAX_RUN_BYTES >> 20} MiB of it" in text
    statuses = re.search(r"statuses ((?:\d+, )+\d+ and \d+) are tried again", text)
    assert statuses is not None
    assert {int(status) for status in re.findall(r"\d+", statuses.group(1))} == TRIED_AGAIN
