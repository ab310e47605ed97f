"""Every metric family: name, help, labels, buckets. `docs/metrics.md` lists them, held by a test.

Base units only (seconds, bytes, tokens, rows). Label values are bounded: `model` is the name of a
served bundle (empty where a call concerns none), everything else is an enumeration of ours.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LOAD_PHASES: Final = ("open", "read", "verify", "decode", "transfer", "repack", "warmup")
LOAD_STEPS: Final = ("open", "group", "warmup")
TIERS: Final = ("disk", "host", "device")

# Small models answer within a millisecond and big ones load for minutes: one series covers both.
SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
STEP_SECONDS: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08,
    0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
BATCH: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)
TOKENS: Final = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class _Families:
    """Declares families on one registry under the common prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tersor_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tersor_{name}", text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"tersor_{name}", text, labels, buckets=buckets, registry=self._registry)


class RequestFamilies(_Families):
    """What every request has, whatever the program."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.requests = self._counter(
            "requests", "Finished calls by method and gRPC status.", "model", "method", "status"
        )
        self.duration = self._histogram(
            "request_duration_seconds",
            "Time from the arrival of a call to its last byte.",
            SECONDS,
            "model",
            "method",
        )
        self.queue = self._histogram(
            "request_queue_seconds",
            "Time from admission to the start of computation.",
            SECONDS,
            "model",
        )
        self.failures = self._counter(
            "request_failures", "Requests an engine refused or failed.", "model", "reason"
        )
        self.running = self._gauge("requests_running", "Requests being computed.", "model")
        self.waiting = self._gauge("requests_waiting", "Admitted requests in the queue.", "model")


class GenerationFamilies(_Families):
    """Decoders: latency of tokens, batches, lengths."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.first_token = self._histogram(
            "time_to_first_token_seconds",
            "Time from admission to the first token; cold: the request waited for weights.",
            SECONDS,
            "model",
            "cold",
        )
        self.inter_token = self._histogram(
            "inter_token_seconds", "Time between a request's tokens.", STEP_SECONDS, "model"
        )
        self.prefill = self._histogram(
            "prefill_seconds", "Computing one request's prompt.", SECONDS, "model"
        )
        self.prefill_tokens = self._counter(
            "prefill_tokens", "Prompt tokens computed, as they are computed.", "model"
        )
        self.decode_step = self._histogram(
            "decode_step_seconds", "One decode step of the batch.", STEP_SECONDS, "model"
        )
        self.decode_batch = self._histogram(
            "decode_batch_size", "Sequences in one decode step.", BATCH, "model"
        )
        self.prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens of finished requests.", "model"
        )
        self.generated_tokens = self._counter(
            "generated_tokens", "Generated tokens of finished requests.", "model"
        )
        self.request_prompt_tokens = self._histogram(
            "request_prompt_tokens", "Prompt length of a finished request.", TOKENS, "model"
        )
        self.request_generated_tokens = self._histogram(
            "request_generated_tokens",
            "Continuation length of a finished request.",
            TOKENS,
            "model",
        )
        self.finished = self._counter(
            "generations_finished", "Generations that ended well.", "model", "reason"
        )


class CacheFamilies(_Families):
    """Key and value pages of decoders."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.preemptions = self._counter(
            "preemptions",
            "Times a running request gave up its pages and was computed again.",
            "model",
        )
        self.kv_used = self._gauge(
            "kv_pages_used", "Key and value pages held by requests.", "model"
        )
        self.kv_capacity = self._gauge("kv_pages_capacity", "Key and value pages.", "model")
        self.kv_usage = self._gauge(
            "kv_usage_ratio", "Key and value pages held, of all (0 to 1).", "model"
        )


class GraphFamilies(_Families):
    """Graph programs: batches over requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.run = self._histogram(
            "graph_run_seconds", "One run of the program over a batch.", STEP_SECONDS, "model"
        )
        self.rows = self._histogram("graph_batch_rows", "Rows in one batch.", BATCH, "model")
        self.batch_requests = self._histogram(
            "graph_batch_requests", "Requests in one batch.", BATCH, "model"
        )


class WeightFamilies(_Families):
    """Loading of weights and where they are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.load = self._histogram(
            "load_seconds",
            "One step of a load: opening the bundle, one group, or the warm-up run.",
            SECONDS,
            "model",
            "step",
        )
        self.phase = self._histogram(
            "load_phase_seconds",
            "A phase of a load step; the phases partition the load.",
            SECONDS,
            "model",
            "phase",
        )
        self.wait = self._histogram(
            "load_wait_seconds", "Time a computation stood still for weights.", SECONDS, "model"
        )
        self.load_failures = self._counter("load_failures", "Group loads that failed.", "model")
        self.bytes = self._gauge("weight_bytes", "Weights by tier.", "model", "tier")
        self.bytes_read = self._counter(
            "weight_bytes_read", "Stored bytes of weights read from disk.", "model"
        )
        self.evictions = self._counter(
            "evictions", "Groups dropped from a tier to make room.", "model", "tier"
        )
        self.groups_resident = self._gauge("groups_resident", "Groups on the device now.", "model")
        self.groups = self._gauge("groups", "Groups of the bundle.", "model")
        self.budget = self._gauge(
            "memory_budget_bytes", "Budget of resident weights over all models; 0: no limit."
        )


class ModelFamilies(_Families):
    """What is served, by what."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.ready = self._gauge("model_ready", "1 when the model takes requests.", "model")
        self.info = self._gauge(
            "model_info",
            "Always 1; the labels describe the bundle.",
            "model",
            "version",
            "program",
            "recipe",
            "layouts",
            "digest",
            "producer",
        )
        self.bundle_bytes = self._gauge("bundle_bytes", "Size of the bundle's file.", "model")
        self.certificate_info = self._gauge(
            "certificate_info", "1 if the bundle carries a certificate, else 0.", "model"
        )
        self.certificate = self._gauge(
            "certificate_value", "A number of the bundle's certificate.", "model", "measure"
        )
        self.build = self._gauge(
            "build_info",
            "Always 1; the labels are versions.",
            "version",
            "torch",
            "python",
            "device",
        )
        self.start = self._gauge(
            "process_start_time_seconds", "When the process began to serve, Unix time."
        )
