from __future__ import annotations

import ast
import inspect
import itertools
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tersor.runtime.engine.observer import EngineMetrics as EngineMetricsContract
from tersor.runtime.engine.types import FinishReason, Usage
from tersor.runtime.graph import GraphObserver
from tersor.runtime.metrics import Metrics, ModelFacts
from tersor.runtime.metrics.families import LOAD_PHASES, SECONDS, STEP_SECONDS
from tersor.runtime.metrics.observers import failure_reasons
from tersor.runtime.residency import WeightObserver

FACTS = ModelFacts(
    version="1",
    program="decoder",
    recipe="int4",
    layouts=("dense", "int4"),
    digest="ab" * 32,
    producer="tersor 0.1.0",
    bundle_bytes=1234,
    certificate={"bits_per_weight": 4.5},
)
USAGE = Usage(
    prompt_tokens=7,
    completion_tokens=3,
    queue_seconds=0.0,
    load_seconds=0.0,
    prefill_seconds=0.1,
    decode_seconds=0.2,
    time_to_first_token_seconds=0.1,
)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(f"tersor_{name}", labels)
    assert found is not None, f"{name} {labels} has no sample"
    return found


def test_an_engine_reports_through_its_view(metrics: Metrics, registry: CollectorRegistry) -> None:
    contract: EngineMetricsContract = metrics
    engine = contract.engine_observer("m")
    engine.queued(0.5)
    engine.first_token(0.25)
    engine.first_token(9.0, cold=True)
    engine.inter_token(0.01)
    engine.prefill(0.1, 100)
    engine.decode_step(0.02, 6)
    engine.finished(FinishReason.LENGTH, USAGE)
    engine.failed("deadline")
    engine.failed("a reason that does not exist")
    engine.preempted()
    engine.kv_usage(3, 12)
    engine.queue_depth(4, 2)
    assert value(registry, "request_queue_seconds_sum", model="m") == 0.5
    first = "time_to_first_token_seconds_sum"
    assert value(registry, first, model="m", cold="false") == 0.25
    assert value(registry, first, model="m", cold="true") == 9.0
    assert value(registry, "prefill_tokens_total", model="m") == 100
    assert value(registry, "decode_batch_size_sum", model="m") == 6
    assert value(registry, "generations_finished_total", model="m", reason="length") == 1
    assert value(registry, "generations_finished_total", model="m", reason="stop") == 0
    assert value(registry, "prompt_tokens_total", model="m") == 7
    assert value(registry, "generated_tokens_total", model="m") == 3
    assert value(registry, "request_failures_total", model="m", reason="deadline") == 1
    assert value(registry, "request_failures_total", model="m", reason="internal") == 1
    assert value(registry, "preemptions_total", model="m") == 1
    assert value(registry, "kv_usage_ratio", model="m") == 0.25
    assert value(registry, "requests_waiting", model="m") == 4
    assert value(registry, "requests_running", model="m") == 2
    engine.kv_usage(0, 0)
    assert value(registry, "kv_usage_ratio", model="m") == 0


def test_a_graph_and_the_weights_report_through_theirs(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    graph: GraphObserver = metrics.graph_observer("g")
    graph.ran(0.004, rows=6, requests=2)
    assert value(registry, "graph_batch_rows_sum", model="g") == 6
    assert value(registry, "graph_batch_requests_sum", model="g") == 2
    weights: WeightObserver = metrics.weight_observer("g")
    weights.loaded("group", 2.0, {"read": 0.5, "decode": 1.0})
    weights.waited(1.5)
    weights.read(1000)
    weights.holds("device", 4000)
    weights.evicted("host")
    weights.load_failed()
    weights.groups(resident=2, total=5)
    assert value(registry, "load_seconds_sum", model="g", step="group") == 2.0
    phases = [
        value(registry, "load_phase_seconds_sum", model="g", phase=phase) for phase in LOAD_PHASES
    ]
    assert sum(phases) == 1.5
    assert value(registry, "weight_bytes", model="g", tier="device") == 4000
    assert value(registry, "evictions_total", model="g", tier="host") == 1
    assert value(registry, "groups_resident", model="g") == 2


def test_calls_for_unknown_models_share_one_label(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.add_model("m", FACTS)
    for name in ("m", "", *(f"guess-{i}" for i in range(50))):
        metrics.rpc(name, "ModelInfer").finished("OK", 0.001)
    metrics.rpc("m", "ModelInfer").finished("NOT_FOUND", 0.001)
    assert metrics.rpc("m", "ModelInfer") is metrics.rpc("m", "ModelInfer")
    calls = {"method": "ModelInfer", "status": "OK"}
    assert value(registry, "requests_total", model="m", **calls) == 1
    assert value(registry, "requests_total", model="", **calls) == 51
    assert "guess" not in generate_latest(registry).decode()


def test_models_and_the_process_describe_themselves(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.process(version="0.1.0", torch="2.13.0", device="cpu", start=1.5e9)
    metrics.add_model("m", FACTS)
    assert value(registry, "model_ready", model="m") == 0
    metrics.model_ready("m", ready=True)
    assert value(registry, "model_ready", model="m") == 1
    assert value(registry, "bundle_bytes", model="m") == 1234
    assert value(registry, "certificate_info", model="m") == 1
    assert value(registry, "certificate_value", model="m", measure="bits_per_weight") == 4.5
    assert value(registry, "process_start_time_seconds") == 1.5e9
    text = generate_latest(registry).decode()
    assert 'tersor_build_info{device="cpu"' in text
    assert 'layouts="dense,int4"' in text
    metrics.memory_budget(None)
    assert value(registry, "memory_budget_bytes") == 0


def test_every_series_of_a_view_exists_before_anything_happened(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.engine_observer("m")
    for reason in failure_reasons():
        assert value(registry, "request_failures_total", model="m", reason=reason) == 0
    for cold in ("true", "false"):
        name = "time_to_first_token_seconds_count"
        assert value(registry, name, model="m", cold=cold) == 0


def test_buckets_are_fine_enough_for_small_models() -> None:
    for buckets in (SECONDS, STEP_SECONDS):
        assert buckets[0] == 0.0005
        assert list(buckets) == sorted(set(buckets))
        assert all(b / a <= 2.51 for a, b in itertools.pairwise(buckets))


def test_two_registries_do_not_meet() -> None:
    one, two = CollectorRegistry(), CollectorRegistry()
    Metrics(one).engine_observer("m").preempted()
    Metrics(two).engine_observer("m")
    assert value(two, "preemptions_total", model="m") == 0


def test_labels_are_not_looked_up_on_the_hot_path() -> None:
    from tersor.runtime.metrics.observers import EngineMetrics

    source = ast.parse(inspect.getsource(EngineMetrics))
    functions = [node for node in ast.walk(source) if isinstance(node, ast.FunctionDef)]
    callers = {
        function.name
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "labels"
    }
    assert callers == {"__init__"}


def test_importing_registers_nothing_and_starts_no_thread() -> None:
    code = (
        "import threading, prometheus_client\n"
        "before = set(prometheus_client.REGISTRY._names_to_collectors)\n"
        "import tersor.runtime.metrics, tersor.runtime.residency, tersor.runtime.graph\n"
        "assert set(prometheus_client.REGISTRY._names_to_collectors) == before\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
