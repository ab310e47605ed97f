"""Writes what is derived from a readable source: the dashboard and the operator's PrometheusRule.

usage: python deploy/render.py [--check]      --check writes nothing and fails if a file is stale
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import indent

from dashboard import dashboard

HERE = Path(__file__).resolve().parent

PROMETHEUS_RULE_HEAD = """\
# Written by deploy/render.py from deploy/prometheus/rules/tersor.yml; change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tersor
  labels:
    app.kubernetes.io/name: tersor
spec:
"""


def outputs() -> dict[Path, str]:
    """Every derived file and the text it must have."""
    rules = (HERE / "prometheus/rules/tersor.yml").read_text(encoding="utf-8")
    return {
        HERE / "grafana/tersor.json": json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n",
        HERE / "kubernetes/components/monitoring/prometheusrule.yaml": PROMETHEUS_RULE_HEAD
        + indent(rules, "  "),
    }


def main(arguments: list[str]) -> int:
    """Returns 0 when every file is written or current, 1 when one is stale, 2 for wrong usage."""
    if arguments not in ([], ["--check"]):
        print("usage: render.py [--check]", file=sys.stderr)
        return 2
    stale = [
        path
        for path, text in outputs().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if not arguments:
        for path in stale:
            path.write_text(outputs()[path], encoding="utf-8")
        return 0
    for path in stale:
        print(f"{path} is stale: run python deploy/render.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
