"""Turns the rows of panels.py into Grafana's JSON model of a dashboard."""

from __future__ import annotations

from typing import Any, Final

from panels import ROWS, SERVER, Panel, Query

GRID_COLUMNS: Final = 24
SCHEMA_VERSION: Final = 39  # Grafana 10.4; newer ones migrate it when they import it
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A drop-down of a label's values, several at once; "All" also matches an absent label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}", "qryType": 1},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "multi": False,
            "includeAll": False,
            "current": {},
            "options": [],
            "regex": "",
            "hide": 0,
            "skipUrlSync": False,
        },
        _variable("job", "Job", "label_values(tersor_build_info, job)"),
        _variable("instance", "Server", 'label_values(tersor_build_info{job=~"$job"}, instance)'),
        _variable("model", "Model", f"label_values(tersor_model_info{{{SERVER}}}, model)"),
    ]


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {
            "reduceOptions": reduce,
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "auto",
        }
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    return {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _field_config(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "table":
        defaults = {}
    elif panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 10,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    return {"defaults": defaults, "overrides": []}


def _target(query: Query, index: int, *, table: bool) -> dict[str, Any]:
    target: dict[str, Any] = {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "range": not table,
        "instant": table,
    }
    if table:
        target["format"] = "table"
    return target


def _panel(panel: Panel, *, identity: int, x: int, y: int, height: int) -> dict[str, Any]:
    table = panel.kind == "table"
    result: dict[str, Any] = {
        "id": identity,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": height, "w": panel.width, "x": x, "y": y},
        "targets": [_target(query, n, table=table) for n, query in enumerate(panel.queries)],
        "fieldConfig": _field_config(panel),
        "options": _options(panel),
        "transformations": [],
    }
    if table:
        hidden = {"Time": True, "Value": True}
        result["transformations"] = [
            {
                "id": "organize",
                "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": {}},
            }
        ]
    return result


def _panels() -> list[dict[str, Any]]:
    """Rows from top to bottom, panels from left to right, identities in order."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        place = {"h": 1, "w": GRID_COLUMNS, "x": 0, "y": y}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False,
             "gridPos": place, "panels": []}
        )  # fmt: skip
        y += 1
        x = 0
        height = 4 if all(panel.kind == "stat" for panel in row.panels) else 8
        for panel in row.panels:
            if x + panel.width > GRID_COLUMNS:
                x, y = 0, y + height
            panels.append(_panel(panel, identity=len(panels) + 1, x=x, y=y, height=height))
            x += panel.width
        y += height
    return panels


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model."""
    return {
        "uid": "tersor-serving",
        "title": "Tersor",
        "description": "Requests, latency, weights and memory of Tersor servers.",
        "tags": ["inference", "tersor"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _variables()},
        "panels": _panels(),
    }
