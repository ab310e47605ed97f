"""KServe objects: the fields are those of its API, the pod is one that the real schema accepts."""

from __future__ import annotations

import tomllib
from typing import Any

import kubernetes_validate
import pytest
from deploy_files import DEPLOY, ROOT, one
from pod_security import violations
from serve_arguments import parse

from tersor.runtime.config import ServerConfig, parse_bytes

RUNTIME = one(DEPLOY / "kserve" / "servingruntime.yaml", "ServingRuntime")
SERVICE = one(DEPLOY / "kserve" / "inferenceservice.yaml", "InferenceService")
KSERVE_GRACE_SECONDS = 30  # what KServe sets where an InferenceService says nothing
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
(CONTAINER,) = RUNTIME["spec"]["containers"]


def pod() -> dict[str, Any]:
    """The pod that KServe makes of the runtime and the service."""
    spec = {key: RUNTIME["spec"][key] for key in ("containers", "volumes")}
    grace = SERVICE["spec"]["predictor"]["terminationGracePeriodSeconds"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "predictor", "labels": RUNTIME["spec"]["labels"]},
        "spec": {**spec, "terminationGracePeriodSeconds": grace},
    }


def test_runtime_fields_are_those_of_the_api() -> None:
    assert RUNTIME["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert set(RUNTIME["spec"]) == {
        "annotations", "containers", "labels", "multiModel", "protocolVersions",
        "supportedModelFormats", "volumes",
    }  # fmt: skip
    assert RUNTIME["spec"]["protocolVersions"] == ["grpc-v2"]
    (format_,) = RUNTIME["spec"]["supportedModelFormats"]
    assert format_ == {"name": "tersor", "version": "1", "autoSelect": True, "priority": 1}
    assert CONTAINER["name"] == "kserve-container", "the name by which KServe finds the server"


def test_service_fields_are_those_of_the_api() -> None:
    assert SERVICE["apiVersion"] == "serving.kserve.io/v1beta1"
    predictor = SERVICE["spec"]["predictor"]
    assert set(predictor) == {
        "maxReplicas", "minReplicas", "model", "terminationGracePeriodSeconds",
    }  # fmt: skip
    assert set(predictor["model"]) == {
        "modelFormat", "protocolVersion", "runtime", "storageUri",
    }  # fmt: skip
    assert predictor["model"]["runtime"] == RUNTIME["metadata"]["name"]
    assert predictor["model"]["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
    formats = RUNTIME["spec"]["supportedModelFormats"]
    wanted = predictor["model"]["modelFormat"]
    assert wanted in [{"name": f["name"], "version": f["version"]} for f in formats]
    annotations = SERVICE["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_the_real_schema_accepts_the_pod(version: str) -> None:
    kubernetes_validate.validate(pod(), version, strict=True)


def test_pod_security_restricted() -> None:
    assert violations(pod()["spec"]) == []
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True


def test_arguments_ports_probes_and_annotations_agree() -> None:
    served = parse(CONTAINER["args"])
    defaults = ServerConfig(models=())
    assert served.models == ("/mnt/models",), "where KServe puts what storageUri names"
    assert (served.grpc_port, served.metrics_port) == (defaults.grpc_port, defaults.metrics_port)
    ports = [(port["name"], port["containerPort"]) for port in CONTAINER["ports"]]
    assert ports == [("h2c", served.grpc_port), ("metrics", served.metrics_port)]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["grpc"] == {"port": served.grpc_port}
    assert RUNTIME["spec"]["annotations"] == {
        "prometheus.kserve.io/port": str(served.metrics_port),
        "prometheus.kserve.io/path": "/metrics",
    }


def test_stopping_fits_into_the_grace_period_even_where_none_is_set() -> None:
    pre_stop = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    stopping = pre_stop + parse(CONTAINER["args"]).drain_seconds
    assert stopping + 5 <= KSERVE_GRACE_SECONDS
    assert stopping + 5 <= pod()["spec"]["terminationGracePeriodSeconds"]


def test_memory_and_image() -> None:
    served = parse(CONTAINER["args"])
    limit = parse_bytes(CONTAINER["resources"]["limits"]["memory"] + "B")
    assert served.memory_budget_bytes + served.kv_cache_bytes <= 0.8 * limit
    assert CONTAINER["resources"]["requests"] == CONTAINER["resources"]["limits"]
    assert CONTAINER["image"] == f"tersor:{VERSION}"


def test_the_pod_monitor_finds_the_pods() -> None:
    monitor = one(DEPLOY / "kubernetes/components/monitoring/podmonitor.yaml", "PodMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= RUNTIME["spec"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in CONTAINER["ports"]}
