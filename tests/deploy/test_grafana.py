"""The dashboard: importable as it is, and every query answerable."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from deploy_files import DEPLOY
from metric_space import samples
from metric_use import check_expression

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "tersor.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = [p for p in DASHBOARD["panels"] if p["type"] != "row"]
UNITS = {"Bps", "bytes", "cps", "ops", "percentunit", "reqps", "s", "short"}


def targets() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(panel, target) for panel in PANELS for target in panel["targets"]]


def test_a_file_to_import_has_no_identity_of_another_grafana() -> None:
    assert "id" not in DASHBOARD
    assert DASHBOARD["uid"] == "tersor-serving"
    assert DASHBOARD["schemaVersion"] >= 36, "older ones know no datasource references"
    assert "__inputs" not in DASHBOARD, "the datasource is a variable, nothing is asked for"


def test_variables() -> None:
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "model"]
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("job", "instance", "model"):
        variable = variables[name]
        assert variable["type"] == "query"
        assert variable["allValue"] == ".*", "a call that concerns no model has an empty label"
        match = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", variable["definition"])
        assert match is not None
        assert match.group(1) in samples()
        assert match.group(3) == name
        assert variable["query"]["query"] == variable["definition"]


def test_every_datasource_is_the_variable() -> None:
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    for panel, target in targets():
        assert panel["datasource"] == wanted
        assert target["datasource"] == wanted


def test_identities_and_reference_ids_are_unique() -> None:
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    for panel in PANELS:
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_reads_what_the_server_exposes(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        usage = check_expression(target["expr"])
        for selector in usage.selectors:
            assert selector.matchers["job"] == ("=~", "$job")
            has_model = "model" in samples()[selector.metric]
            assert ("model" in selector.matchers) == has_model, selector.metric
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert named <= usage.grouping


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_rate_uses_the_window_that_fits_the_scrape_interval(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert set(re.findall(r"\[([^\]]+)\]", target["expr"])) <= {"$__rate_interval"}


def test_units_fit_the_names() -> None:
    for panel in PANELS:
        unit = panel["fieldConfig"]["defaults"].get("unit")
        assert unit in UNITS or panel["type"] == "table"
        for target in panel["targets"]:
            metric = check_expression(target["expr"]).selectors[0].metric
            if "histogram_quantile" in target["expr"] and "_seconds_" in metric:
                assert unit == "s", panel["title"]


def test_the_dashboard_shows_every_family_an_operator_watches() -> None:
    shown = " ".join(target["expr"] for _, target in targets())
    for name in (
        "tersor_requests_total",
        "tersor_request_duration_seconds",
        "tersor_request_queue_seconds",
        "tersor_request_failures_total",
        "tersor_time_to_first_token_seconds",
        "tersor_inter_token_seconds",
        "tersor_generated_tokens_total",
        "tersor_decode_batch_size",
        "tersor_kv_usage_ratio",
        "tersor_load_phase_seconds_sum",
        "tersor_weight_bytes",
        "tersor_evictions_total",
        "tersor_graph_run_seconds",
    ):
        assert name in shown
    stacked = [
        panel["title"]
        for panel in PANELS
        if panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode")
        == "normal"
    ]
    assert "Loading, by phase" in stacked
