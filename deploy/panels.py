"""What the Grafana dashboard shows: rows of panels, each a title, a unit and queries.

Place and identity follow from the order, so that moving a panel is moving a line. dashboard.py
turns this into Grafana's JSON, render.py writes it to grafana/tersor.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SERVER: Final = 'job=~"$job", instance=~"$instance"'  # metrics of the process
MODEL: Final = f'{SERVER}, model=~"$model"'
WINDOW: Final = "$__rate_interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression and how its series are named."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel; `unit` is a Grafana unit id, `width` in the 24 columns of the grid."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    description: str = ""
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A titled group of panels."""

    title: str
    panels: tuple[Panel, ...]


def quantiles(
    metric: str,
    *,
    points: Iterable[int] = (50, 95, 99),
    select: str = MODEL,
    tag: str = "",
    by: str = "",
) -> tuple[Query, ...]:
    """Quantiles of a histogram over everything selected, split by label `by` if one is named."""
    keep = f"{by}, le" if by else "le"
    return tuple(
        Query(
            expr=f"histogram_quantile({point / 100:g}, "
            f"sum by ({keep}) (rate({metric}_bucket{{{select}}}[{WINDOW}])))",
            legend=" ".join(
                part for part in (f"{{{{{by}}}}}" if by else "", tag, f"p{point}") if part
            ),
        )
        for point in points
    )


def rate(metric: str, *, by: str, select: str = MODEL, legend: str = "") -> tuple[Query, ...]:
    """Per-second rate of a counter, split by label `by`."""
    expr = f"sum by ({by}) (rate({metric}{{{select}}}[{WINDOW}]))"
    return (Query(expr=expr, legend=legend or f"{{{{{by}}}}}"),)


def level(metric: str, *, by: str, select: str = MODEL, legend: str = "") -> tuple[Query, ...]:
    """A gauge added up, split by label `by`."""
    return (Query(expr=f"sum by ({by}) ({metric}{{{select}}})", legend=legend or f"{{{{{by}}}}}"),)


def mean(metric: str, *, by: str = "model", legend: str = "") -> tuple[Query, ...]:
    """The mean of a histogram, split by label `by`."""
    expr = (
        f"sum by ({by}) (rate({metric}_sum{{{MODEL}}}[{WINDOW}])) "
        f"/ sum by ({by}) (rate({metric}_count{{{MODEL}}}[{WINDOW}]))"
    )
    return (Query(expr=expr, legend=legend or f"{{{{{by}}}}}"),)


FAILED_STATUS: Final = 'status=~"DATA_LOSS|INTERNAL|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN"'
WARM: Final = f'{MODEL}, cold="false"'
COLD: Final = f'{MODEL}, cold="true"'
TTFT: Final = "tersor_time_to_first_token_seconds"

OVERVIEW: Final = Row(
    title="Overview",
    panels=(
        Panel(
            title="Models ready",
            kind="stat",
            width=4,
            queries=(Query(expr=f"sum(tersor_model_ready{{{MODEL}}})", legend="ready"),),
        ),
        Panel(
            title="Calls",
            kind="stat",
            width=4,
            unit="reqps",
            queries=(
                Query(
                    expr=f"sum(rate(tersor_requests_total{{{MODEL}}}[{WINDOW}]))", legend="calls"
                ),
            ),
        ),
        Panel(
            title="Calls failed by the server",
            description="Share of INTERNAL, UNAVAILABLE, RESOURCE_EXHAUSTED, UNKNOWN, DATA_LOSS.",
            kind="stat",
            width=4,
            unit="percentunit",
            queries=(
                Query(
                    expr=f"(sum(rate(tersor_requests_total{{{MODEL}, {FAILED_STATUS}}}[{WINDOW}]))"
                    f" or vector(0)) / sum(rate(tersor_requests_total{{{MODEL}}}[{WINDOW}]))",
                    legend="failed",
                ),
            ),
        ),
        Panel(
            title="First token, weights loaded",
            kind="stat",
            width=4,
            unit="s",
            queries=quantiles(TTFT, points=(95,), select=WARM),
        ),
        Panel(
            title="Generated tokens",
            kind="stat",
            width=4,
            unit="cps",
            queries=(
                Query(
                    expr=f"sum(rate(tersor_inter_token_seconds_count{{{MODEL}}}[{WINDOW}]))"
                    f" + sum(rate({TTFT}_count{{{MODEL}}}[{WINDOW}]))",
                    legend="tokens",
                ),
            ),
        ),
        Panel(
            title="Weights on the device",
            kind="stat",
            width=4,
            unit="bytes",
            queries=(
                Query(expr=f'sum(tersor_weight_bytes{{{MODEL}, tier="device"}})', legend="device"),
            ),
        ),
    ),
)

REQUESTS: Final = Row(
    title="Requests",
    panels=(
        Panel(
            title="Calls by status",
            unit="reqps",
            queries=rate("tersor_requests_total", by="status"),
        ),
        Panel(
            title="Calls by method",
            unit="reqps",
            queries=rate("tersor_requests_total", by="method"),
        ),
        Panel(
            title="Calls by model", unit="reqps", queries=rate("tersor_requests_total", by="model")
        ),
        Panel(
            title="Call duration",
            unit="s",
            description="From the arrival of a call to its last byte, streams included.",
            queries=quantiles("tersor_request_duration_seconds"),
        ),
        Panel(
            title="Time in the queue", unit="s", queries=quantiles("tersor_request_queue_seconds")
        ),
        Panel(
            title="Requests in hand",
            queries=(
                *level("tersor_requests_running", by="model", legend="{{model}} running"),
                *level("tersor_requests_waiting", by="model", legend="{{model}} waiting"),
            ),
        ),
        Panel(
            title="Failures by reason",
            unit="reqps",
            width=24,
            stacked=True,
            queries=rate("tersor_request_failures_total", by="reason"),
        ),
    ),
)

GENERATION: Final = Row(
    title="Generation",
    panels=(
        Panel(
            title="First token, weights loaded",
            unit="s",
            description="From admission to the first token of requests that found their weights.",
            queries=quantiles(TTFT, select=WARM, tag="warm"),
        ),
        Panel(
            title="First token, cold",
            unit="s",
            description="From admission to the first token of requests that waited for weights.",
            queries=quantiles(TTFT, select=COLD, tag="cold"),
        ),
        Panel(
            title="Time between tokens", unit="s", queries=quantiles("tersor_inter_token_seconds")
        ),
        Panel(
            title="Tokens",
            unit="cps",
            description="Prompt tokens as they are computed, generated ones as requests finish.",
            queries=(
                *rate("tersor_generated_tokens_total", by="model", legend="{{model}} generated"),
                *rate("tersor_prefill_tokens_total", by="model", legend="{{model}} prompt"),
            ),
        ),
        Panel(
            title="Sequences in a decode step",
            queries=(
                *mean("tersor_decode_batch_size", legend="{{model}} mean"),
                *quantiles("tersor_decode_batch_size", points=(95,), by="model"),
            ),
        ),
        Panel(
            title="Key and value pages held",
            unit="percentunit",
            queries=(
                Query(
                    expr=f"max by (model) (tersor_kv_usage_ratio{{{MODEL}}})", legend="{{model}}"
                ),
            ),
        ),
        Panel(
            title="Prefill", unit="s", queries=quantiles("tersor_prefill_seconds", points=(50, 95))
        ),
        Panel(
            title="Decode step",
            unit="s",
            queries=quantiles("tersor_decode_step_seconds", points=(50, 95)),
        ),
        Panel(
            title="Generations ended",
            unit="reqps",
            stacked=True,
            queries=rate("tersor_generations_finished_total", by="reason"),
        ),
        Panel(
            title="Prompt length",
            queries=quantiles("tersor_request_prompt_tokens", points=(50, 95)),
        ),
        Panel(
            title="Continuation length",
            queries=quantiles("tersor_request_generated_tokens", points=(50, 95)),
        ),
        Panel(
            title="Requests that gave up their pages",
            description="They are computed again later: keys and values are too small.",
            unit="ops",
            queries=rate("tersor_preemptions_total", by="model"),
        ),
    ),
)

GRAPHS: Final = Row(
    title="Graph programs",
    panels=(
        Panel(
            title="Run", unit="s", queries=quantiles("tersor_graph_run_seconds", points=(50, 95))
        ),
        Panel(title="Rows in a batch, mean", queries=mean("tersor_graph_batch_rows")),
        Panel(title="Requests in a batch, mean", queries=mean("tersor_graph_batch_requests")),
    ),
)

WEIGHTS: Final = Row(
    title="Weights",
    panels=(
        Panel(
            title="Loading, by phase",
            unit="s",
            stacked=True,
            description="Seconds of loading in each second; the phases partition the load.",
            queries=rate("tersor_load_phase_seconds_sum", by="phase"),
        ),
        Panel(
            title="Load steps",
            unit="s",
            queries=quantiles("tersor_load_seconds", points=(50, 95), by="step"),
        ),
        Panel(
            title="Computation standing still for weights",
            unit="percentunit",
            description="Seconds waited for weights in each second.",
            queries=rate("tersor_load_wait_seconds_sum", by="model"),
        ),
        Panel(
            title="Bytes by tier",
            unit="bytes",
            stacked=True,
            queries=level("tersor_weight_bytes", by="tier"),
        ),
        Panel(
            title="Device bytes and budget",
            unit="bytes",
            queries=(
                *level(
                    "tersor_weight_bytes",
                    by="instance",
                    select=f'{MODEL}, tier="device"',
                    legend="{{instance}} used",
                ),
                *level(
                    "tersor_memory_budget_bytes",
                    by="instance",
                    select=SERVER,
                    legend="{{instance}} budget",
                ),
            ),
        ),
        Panel(
            title="Read from disk",
            unit="Bps",
            queries=rate("tersor_weight_bytes_read_total", by="model"),
        ),
        Panel(
            title="Groups on the device",
            queries=(
                *level("tersor_groups_resident", by="model", legend="{{model}} resident"),
                *level("tersor_groups", by="model", legend="{{model}} all"),
            ),
        ),
        Panel(
            title="Groups dropped to make room",
            unit="ops",
            queries=rate("tersor_evictions_total", by="tier"),
        ),
        Panel(
            title="Failed loads",
            queries=(
                Query(
                    expr="sum by (model) "
                    f"(increase(tersor_load_failures_total{{{MODEL}}}[{WINDOW}]))",
                    legend="{{model}}",
                ),
            ),
        ),
    ),
)

MODELS: Final = Row(
    title="Models and process",
    panels=(
        Panel(
            title="Bundles served",
            kind="table",
            width=24,
            queries=(
                Query(
                    expr="max by (model, version, program, recipe, layouts, producer, digest) "
                    f"(tersor_model_info{{{MODEL}}})",
                    legend="",
                ),
            ),
        ),
        Panel(
            title="CPU",
            unit="percentunit",
            description="Cores in use.",
            queries=rate("process_cpu_seconds_total", by="instance", select=SERVER),
        ),
        Panel(
            title="Resident memory",
            unit="bytes",
            queries=level("process_resident_memory_bytes", by="instance", select=SERVER),
        ),
        Panel(title="Open files", queries=level("process_open_fds", by="instance", select=SERVER)),
    ),
)

ROWS: Final = (OVERVIEW, REQUESTS, GENERATION, GRAPHS, WEIGHTS, MODELS)
