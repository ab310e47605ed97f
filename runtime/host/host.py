"""Every model of the process: opened, named, made ready, closed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as distribution_version
from types import MappingProxyType

import torch

from tersor.bundle.location import Location
from tersor.kernels.tuning import check_tables
from tersor.models.activations import resolve_activations
from tersor.runtime.config import ServerConfig, format_bytes
from tersor.runtime.errors import ConfigError, UnknownModelError
from tersor.runtime.host.discovery import find_bundles
from tersor.runtime.host.machine import default_memory_budget
from tersor.runtime.host.opening import Opener
from tersor.runtime.host.served import ServedModel
from tersor.runtime.host.warmup import warm_up
from tersor.runtime.metrics import Metrics
from tersor.runtime.residency import Residency

_log = logging.getLogger(__name__)


class ModelHost:
    """Opens every bundle of the configuration; with `preload` also loads and warms them.

    Returns from the constructor with every model ready. Weights are loaded on first use, or by
    `preload` as far as the memory budget goes. Thread-safe.
    """

    def __init__(
        self,
        config: ServerConfig,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens the models.

        Args:
            config: the whole process.
            metrics: of the process.
            clock: seconds; the engines' deadlines are on it.

        Raises:
            ConfigError: the device does not exist.
            TuningError: a tuning table of the device is broken.
            ModelLoadError: no such file, an empty folder, two bundles of one name, or a bundle that
                lacks something; with `preload` also weights that cannot be read.
            BundleError: a file is not a bundle, or a damaged one.
            ModelError: a program this build cannot run.
        """
        places = find_bundles(config.models)
        device = _device(config)
        budget = config.memory_budget_bytes
        if budget is None:
            budget = default_memory_budget(device)
        self._metrics = metrics
        self._residency = Residency(
            device=device,
            budget_bytes=budget,
            host_budget_bytes=config.host_cache_bytes,
            prefetch_groups=config.prefetch_groups,
        )
        self._models: dict[str, ServedModel] = {}
        self.models: Mapping[str, ServedModel] = MappingProxyType(self._models)
        opener = Opener(
            config=config,
            metrics=metrics,
            residency=self._residency,
            device=device,
            activations=resolve_activations(config.activations, device),
            clock=clock,
        )
        _describe_process(metrics, device, budget)
        try:
            self._open_all(opener, places)
        except BaseException:
            self.close()
            raise

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model called `name`; an empty version means any.

        Raises:
            UnknownModelError: there is no such model or version.
        """
        served = self._models.get(name)
        if served is None:
            known = ", ".join(self._models)
            raise UnknownModelError(f"there is no model {name!r}; this server has {known}")
        if version not in {"", served.version}:
            raise UnknownModelError(
                f"model {name!r} has no version {version!r}; it has version {served.version}"
            )
        return served

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuses new requests, gives running ones `drain_seconds`, ends every thread and file."""
        models = list(self._models.values())
        for served in models:
            served.ready = False
            self._metrics.model_ready(served.name, ready=False)
        if models:
            with ThreadPoolExecutor(len(models), thread_name_prefix="tersor-close") as threads:
                list(threads.map(lambda served: served.engine.close(drain_seconds), models))
        self._residency.close()
        for served in models:
            served.reader.close()

    def _open_all(self, opener: Opener, places: Mapping[str, Location]) -> None:
        """Opens everything before anything is loaded: a bad path is then told at once."""
        for name, place in places.items():
            self._models[name] = opener.open(name, place)
        for served in self._models.values():
            if opener.config.preload:
                self._preload(served)
            served.ready = True
            self._metrics.model_ready(served.name, ready=True)

    def _preload(self, served: ServedModel) -> None:
        """Loads the model as far as the budget goes, and runs it once."""
        weights = served.weights
        whole = weights.preload()
        start = time.perf_counter()
        if warm_up(served):
            seconds = time.perf_counter() - start
            observer = self._metrics.weight_observer(served.name)
            observer.loaded("warmup", seconds, {"warmup": seconds})
        if not whole:
            _log.warning(
                "model %s: %d of %d groups (%s) fit into the memory budget; the others are loaded "
                "when they are needed",
                served.name,
                weights.resident_groups,
                len(weights.groups),
                format_bytes(weights.resident_bytes),
            )


def _describe_process(metrics: Metrics, device: torch.device, budget: int | None) -> None:
    metrics.process(
        version=distribution_version("tersor"),
        torch=torch.__version__,
        device=str(device),
        start=time.time(),
    )
    metrics.memory_budget(budget)


def _device(config: ServerConfig) -> torch.device:
    device = torch.device(config.device)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device: got {config.device}, but torch sees {count} CUDA devices here; use cpu"
        )
    check_tables(device)
    return device
