from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from rewrite_bundle import flip_a_byte, with_assets

from tersor.bundle.errors import BundleCorruptError, BundleFormatError
from tersor.runtime.config import EngineConfig, ServerConfig
from tersor.runtime.engine.types import (
    Event,
    Failed,
    Finished,
    GenerationRequest,
    SamplingParams,
    TextDelta,
)
from tersor.runtime.errors import (
    ConfigError,
    ModelLoadError,
    OutOfMemoryError,
    ShuttingDownError,
    UnknownModelError,
)
from tersor.runtime.host import ModelHost, ServedDecoder
from tersor.runtime.host.machine import host_memory_bytes
from tersor.runtime.metrics import Metrics

ENGINE = EngineConfig(kv_cache_bytes=4 << 20)
MakeHost = Callable[..., ModelHost]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def make_host(registry: CollectorRegistry) -> Iterator[MakeHost]:
    hosts = []
    metrics = Metrics(registry)

    def make(*models: Path, **settings: Any) -> ModelHost:
        config = ServerConfig(models=models, engine=ENGINE, activations="fp32", **settings)
        host = ModelHost(config, metrics)
        hosts.append(host)
        return host

    yield make
    for host in hosts:
        host.close()


def generate(host: ModelHost, name: str, tokens: int = 12) -> str:
    served = host.get(name)
    assert isinstance(served, ServedDecoder)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    request = GenerationRequest(prompt="def read(", sampling=SamplingParams(max_tokens=tokens))
    served.engine.submit(request, events.put)
    text = ""
    while True:
        event = events.get(timeout=60)
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, Failed):
            raise event.error
        else:
            assert isinstance(event, Finished)
            return text


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(f"tersor_{name}", labels)
    assert found is not None, f"{name} {labels} has no sample"
    return found


def test_files_and_folders_are_served_under_their_stems(
    make_host: MakeHost, pico: Path, tmp_path: Path, registry: CollectorRegistry
) -> None:
    for name in ("b", "a"):
        shutil.copy(pico, tmp_path / f"{name}.tersor")
    (tmp_path / "notes.txt").write_text("not a bundle")
    host = make_host(pico, tmp_path)
    assert list(host.models) == ["pico", "a", "b"]
    for name, served in host.models.items():
        assert (served.name, served.version, served.ready) == (name, "1", True)
        assert served.manifest.digest == host.models["pico"].manifest.digest
        assert value(registry, "model_ready", model=name) == 1
    pico_served = host.get("pico", "1")
    assert isinstance(pico_served, ServedDecoder)
    assert pico_served.engine.defaults == SamplingParams(max_tokens=128)
    assert pico_served.tokenizer.vocab_size == pico_served.program.vocab_size
    assert value(registry, "load_seconds_count", model="pico", step="open") == 1
    assert value(registry, "weight_bytes", model="pico", tier="device") == 0


def test_unknown_names_and_versions_are_refused(make_host: MakeHost, pico: Path) -> None:
    host = make_host(pico)
    with pytest.raises(UnknownModelError, match="no model 'nano'; this server has pico"):
        host.get("nano")
    with pytest.raises(UnknownModelError, match="'pico' has no version '2'; it has version 1"):
        host.get("pico", "2")


def test_the_first_request_loads_and_the_second_does_not(
    make_host: MakeHost, pico: Path, registry: CollectorRegistry
) -> None:
    host = make_host(pico)
    assert generate(host, "pico") == generate(host, "pico")
    served = host.get("pico")
    groups = len(served.weights.groups)
    assert served.weights.resident_groups == groups == value(registry, "groups", model="pico")
    assert value(registry, "load_seconds_count", model="pico", step="group") == groups
    name = "time_to_first_token_seconds_count"
    assert value(registry, name, model="pico", cold="true") == 1
    assert value(registry, name, model="pico", cold="false") == 1
    resident = value(registry, "weight_bytes", model="pico", tier="device")
    assert resident == served.weights.resident_bytes > 0
    stored = value(registry, "weight_bytes", model="pico", tier="disk")
    assert value(registry, "weight_bytes_read_total", model="pico") == stored


def test_preload_loads_warms_up_and_partitions_the_load(
    make_host: MakeHost, pico: Path, registry: CollectorRegistry
) -> None:
    host = make_host(pico, preload=True)
    served = host.get("pico")
    assert served.weights.resident_groups == len(served.weights.groups)
    steps = {
        step: value(registry, "load_seconds_sum", model="pico", step=step)
        for step in ("open", "group", "warmup")
    }
    phases = {
        phase: value(registry, "load_phase_seconds_sum", model="pico", phase=phase)
        for phase in ("open", "read", "verify", "decode", "transfer", "repack", "warmup")
    }
    assert 0 < phases["open"] <= steps["open"]
    assert phases["warmup"] == steps["warmup"] > 0
    loading = phases["read"] + phases["verify"] + phases["decode"] + phases["repack"]
    assert 0 < loading <= steps["group"]
    generate(host, "pico")
    assert value(registry, "time_to_first_token_seconds_count", model="pico", cold="true") == 0


def test_models_share_one_budget_and_keep_their_text(
    make_host: MakeHost, pico: Path, tmp_path: Path, registry: CollectorRegistry
) -> None:
    shutil.copy(pico, tmp_path / "other.tersor")
    free = make_host(pico)
    expected = generate(free, "pico")
    whole = free.get("pico").weights.resident_bytes
    free.close()
    budget = int(whole * 0.8)
    tight = ModelHost(
        ServerConfig(
            models=(pico, tmp_path / "other.tersor"),
            engine=ENGINE,
            activations="fp32",
            memory_budget_bytes=budget,
            host_cache_bytes=4 << 20,
        ),
        Metrics(tight_registry := CollectorRegistry()),
    )
    try:
        texts: list[str] = []

        def ask(name: str) -> None:
            texts.append(generate(tight, name))

        threads = [threading.Thread(target=ask, args=(n,)) for n in ("pico", "other", "pico")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert texts == [expected] * 3
        held = sum(served.weights.resident_bytes for served in tight.models.values())
        assert 0 < held <= budget
        assert value(tight_registry, "evictions_total", model="pico", tier="device") > 0
        assert value(tight_registry, "memory_budget_bytes") == budget
        kept = [
            value(tight_registry, "weight_bytes", model=name, tier="host") for name in tight.models
        ]
        assert 0 < sum(kept) <= 4 << 20
    finally:
        tight.close()


def test_a_budget_that_can_never_hold_a_group_fails_the_request(
    make_host: MakeHost, pico: Path, registry: CollectorRegistry
) -> None:
    host = make_host(pico, memory_budget_bytes=10_000)
    with pytest.raises(OutOfMemoryError, match=r"embedding needs .* budget of 10000 bytes"):
        generate(host, "pico")
    assert value(registry, "weight_bytes_read_total", model="pico") == 0


def test_the_default_budget_is_most_of_what_the_machine_has(
    make_host: MakeHost, pico: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_host(pico).close()
    total = host_memory_bytes()
    assert total is not None
    assert value(registry, "memory_budget_bytes") == total * 4 // 5
    monkeypatch.setattr("tersor.runtime.host.host.default_memory_budget", lambda _: 12_345)
    host = make_host(pico)
    assert value(registry, "memory_budget_bytes") == 12_345
    with pytest.raises(OutOfMemoryError, match="budget of 12345 bytes"):
        generate(host, "pico")


def test_a_damaged_tensor_is_named_and_nothing_else_suffers(
    make_host: MakeHost, pico: Path, tmp_path: Path, registry: CollectorRegistry
) -> None:
    damaged = tmp_path / "damaged.tersor"
    shutil.copy(pico, damaged)
    flip_a_byte(damaged, "layers.3.qkv")
    host = make_host(pico, damaged)
    with pytest.raises(ModelLoadError, match=r"group layers\.3 .* 'layers\.3\.qkv'") as caught:
        generate(host, "damaged")
    assert "is damaged" in str(caught.value)
    assert value(registry, "load_failures_total", model="damaged") >= 1
    text = generate(host, "pico")
    flip_a_byte(damaged, "layers.3.qkv")  # repaired: the next request tries again
    assert generate(host, "damaged") == text


def test_preload_refuses_a_damaged_bundle(make_host: MakeHost, pico: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.tersor"
    shutil.copy(pico, damaged)
    flip_a_byte(damaged, "layers.3.qkv")
    before = threading.active_count()
    with pytest.raises(ModelLoadError, match=r"layers\.3\.qkv"):
        make_host(pico, damaged, preload=True)
    assert threading.active_count() == before  # everything opened before was closed


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_assets_are_needed_or_not(
    make_host: MakeHost, pico: Path, tmp_path: Path, name: str
) -> None:
    bundle = with_assets(pico, tmp_path / "without.tersor", {name: None})
    if name == "generation_config.json":
        served = make_host(bundle).get("without")
        assert isinstance(served, ServedDecoder)
        assert served.engine.defaults == SamplingParams()
    else:
        with pytest.raises(ModelLoadError, match=r"without\.tersor: the bundle has no tokenizer"):
            make_host(bundle)


def test_wrong_paths_say_what_is_wrong(make_host: MakeHost, pico: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nowhere\.tersor: there is no such file or folder"):
        make_host(tmp_path / "nowhere.tersor")
    with pytest.raises(ModelLoadError, match=r"the folder holds no bundle \(\*\.tersor\)"):
        make_host(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ModelLoadError, match="loop: there is no such file or folder"):
        make_host(tmp_path / "loop")
    with pytest.raises(ModelLoadError, match="x: File name too long"):
        make_host(tmp_path / ("x" * 300))
    with pytest.raises(ModelLoadError, match="at least one bundle"):
        make_host()
    copy = tmp_path / "pico.tersor"
    shutil.copy(pico, copy)
    with pytest.raises(ModelLoadError, match=r"two bundles are called pico: .*; rename one"):
        make_host(pico, copy)
    for name in ("new\nline", "byte\udcff"):
        shutil.copy(pico, tmp_path / f"{name}.tersor")
        with pytest.raises(ModelLoadError, match="characters that cannot be printed; rename it"):
            make_host(tmp_path / f"{name}.tersor")
    copy.write_bytes(b"PK\x03\x04" + bytes(5000))
    with pytest.raises(BundleFormatError, match=r"pico\.tersor"):
        make_host(copy)
    copy.write_bytes(pico.read_bytes()[:-1000])
    with pytest.raises((BundleFormatError, BundleCorruptError), match=r"pico\.tersor"):
        make_host(copy)


def test_a_device_that_is_not_there_is_refused(make_host: MakeHost, pico: Path) -> None:
    with pytest.raises(ConfigError, match="device: got cuda:63"):
        make_host(pico, device="cuda:63")


def test_close_drains_and_ends_every_thread(make_host: MakeHost, pico: Path) -> None:
    before = set(threading.enumerate())
    host = make_host(pico)
    served = host.get("pico")
    assert isinstance(served, ServedDecoder)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    request = GenerationRequest(prompt="def ", sampling=SamplingParams(max_tokens=20))
    served.engine.submit(request, events.put)
    host.close(drain_seconds=60)
    last: Event = events.get(timeout=5)
    while isinstance(last, TextDelta):
        last = events.get(timeout=5)
    assert isinstance(last, Finished)
    assert not served.ready
    assert set(threading.enumerate()) <= before
    with pytest.raises(ShuttingDownError):
        served.engine.submit(request, events.put)
    host.close()
