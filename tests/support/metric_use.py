"""Holds PromQL expressions against what the server exposes and what the rules record."""

from __future__ import annotations

from functools import cache
from typing import Any

import grpc
from deploy_files import DEPLOY, documents
from metric_space import samples
from promql import Selector, Usage, analyse

RULES = DEPLOY / "prometheus" / "rules" / "tersor.yml"
# What Prometheus itself puts on every series that it scrapes, and the one that says it could.
TARGET_LABELS = {"instance", "job", "namespace"}
TARGET_METRICS = {"up"}
STATUSES = {code.name for code in grpc.StatusCode}


@cache
def rules() -> tuple[dict[str, Any], ...]:
    """Every rule of the rules file."""
    (document,) = documents(RULES)
    return tuple(rule for group in document["groups"] for rule in group["rules"])


def alerts() -> list[dict[str, Any]]:
    """The rules that alert."""
    return [rule for rule in rules() if "alert" in rule]


@cache
def recorded() -> dict[str, set[str]]:
    """Recorded metric -> its labels, from what the rule's sums keep."""
    return {
        rule["record"]: analyse(rule["expr"]).grouping - {"le"}
        for rule in rules()
        if "record" in rule
    }


def labels_of(metric: str) -> set[str]:
    """The labels a metric may have, or an AssertionError for an unknown metric."""
    if metric in TARGET_METRICS:
        return TARGET_LABELS
    if metric in recorded():
        return recorded()[metric]
    assert metric in samples(), f"{metric} is not exposed by the server"
    return TARGET_LABELS | set(samples()[metric])


def check_selector(selector: Selector) -> None:
    """Every label exists, and an enumerated one can have every value asked for."""
    known = labels_of(selector.metric)
    values = samples().get(selector.metric, {})
    for label, (operator, wanted) in selector.matchers.items():
        assert label in known, f"{selector.metric} has no label {label}"
        if label in {"model", *TARGET_LABELS} or "$" in wanted:
            continue
        allowed = STATUSES if label == "status" else values[label]
        alternatives = wanted.split("|") if operator in {"=~", "!~"} else [wanted]
        assert set(alternatives) <= allowed, f"{selector.metric}: {label} is never {wanted}"


def check_expression(expression: str) -> Usage:
    """Every metric, label and enumerated value in the expression exists, or AssertionError."""
    usage = analyse(expression)
    assert usage.selectors, expression
    for selector in usage.selectors:
        check_selector(selector)
    known = set().union(*(labels_of(selector.metric) for selector in usage.selectors))
    assert usage.grouping <= known, expression
    return usage
