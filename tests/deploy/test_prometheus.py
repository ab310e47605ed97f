"""Scrape configuration and rules, held against the server's own registry."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from deploy_files import DEPLOY, documents, one
from metric_use import RULES, alerts, check_expression, labels_of, rules
from promql import Selector, analyse, tokens

from tersor.runtime.config import ServerConfig

PROMETHEUS = DEPLOY / "prometheus"
RULE_TESTS = PROMETHEUS / "tests" / "tersor.test.yml"


class TestReader:
    def test_reads_selectors_matchers_and_groupings(self) -> None:
        usage = analyse(
            'sum by (j, le) (rate(a_bucket{x="1", y=~"b|c"}[5m])) / on (j) b:c > 2 and absent(d)'
        )
        assert usage.selectors == [
            Selector("a_bucket", {"x": ("=", "1"), "y": ("=~", "b|c")}),
            Selector("b:c", {}),
            Selector("d", {}),
        ]
        assert usage.grouping == {"j", "le"}

    def test_refuses_what_it_cannot_read(self) -> None:
        with pytest.raises(ValueError, match="cannot read"):
            tokens("rate(x) ; drop")

    @pytest.mark.parametrize(
        "expression",
        [
            "tersor_no_such_metric",
            'tersor_weight_bytes{tierr="host"}',
            'tersor_weight_bytes{tier="hots"}',
            'tersor_requests_total{status=~"INTERNAL|INTERNALS"}',
            'tersor_time_to_first_token_seconds_bucket{le="1"}',
            "sum by (modell) (tersor_groups)",
        ],
    )
    def test_the_check_finds_a_wrong_name(self, expression: str) -> None:
        with pytest.raises(AssertionError):
            check_expression(expression)


class TestRules:
    @pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
    def test_reads_what_the_server_exposes(self, rule: dict[str, Any]) -> None:
        check_expression(rule["expr"])

    @pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
    def test_an_alert_is_complete(self, rule: dict[str, Any]) -> None:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"Tersor[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description"}

    @pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
    def test_an_annotation_names_only_labels_that_the_alert_has(self, rule: dict[str, Any]) -> None:
        usage = analyse(rule["expr"])
        kept = usage.grouping or set().union(
            *(labels_of(selector.metric) for selector in usage.selectors)
        )
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept

    def test_names_are_unique(self) -> None:
        names = [rule.get("alert") or rule["record"] for rule in rules()]
        assert len(names) == len(set(names))

    def test_every_recorded_series_and_every_histogram_rule_uses_the_windows_it_names(self) -> None:
        for rule in rules():
            if "record" in rule:
                window = rule["record"].rpartition("rate")[2]
                assert set(re.findall(r"\[(\w+)\]", rule["expr"])) == {window}, rule["record"]

    def test_a_burn_alert_looks_at_two_windows(self) -> None:
        burning = [rule for rule in alerts() if "Burn" in rule["alert"]]
        assert len(burning) == 4
        for rule in burning:
            windows = re.findall(r":ratio_rate(\w+) >", rule["expr"])
            assert windows in (["1h", "5m"], ["6h", "30m"])

    def test_every_alert_has_a_unit_test_that_fires_it_and_one_that_does_not(self) -> None:
        (document,) = documents(RULE_TESTS)
        fires: set[str] = set()
        quiet: set[str] = set()
        for case in (case for test in document["tests"] for case in test["alert_rule_test"]):
            (fires if case.get("exp_alerts") else quiet).add(case["alertname"])
        names = {rule["alert"] for rule in alerts()}
        assert fires == names
        assert quiet == names


class TestConfiguration:
    def test_scrapes_the_default_metrics_port_under_the_name_the_rules_use(self) -> None:
        (document,) = documents(PROMETHEUS / "prometheus.yml")
        (job,) = document["scrape_configs"]
        port = ServerConfig(models=()).metrics_port
        assert job["job_name"] == "tersor"
        assert job["metrics_path"] == "/metrics"
        assert job["static_configs"] == [{"targets": [f"localhost:{port}"]}]
        for pattern in document["rule_files"]:
            assert list(PROMETHEUS.glob(pattern)) == [RULES]

    def test_the_operators_rules_are_the_same(self) -> None:
        folder = DEPLOY / "kubernetes" / "components" / "monitoring"
        rule = one(folder / "prometheusrule.yaml", "PrometheusRule")
        assert rule["apiVersion"] == "monitoring.coreos.com/v1"
        assert [rule["spec"]] == documents(RULES)

    def test_derived_files_are_current(self) -> None:
        done = subprocess.run(
            [sys.executable, DEPLOY / "render.py", "--check"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
