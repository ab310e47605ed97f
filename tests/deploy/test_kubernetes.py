"""Kubernetes manifests: the real schemas, and agreement with each other and with the server."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deploy_files import DEPLOY, ROOT, documents, one
from pod_security import violations
from serve_arguments import ServeArguments, parse

from tersor.runtime.config import ServerConfig, parse_bytes

KUBERNETES = DEPLOY / "kubernetes"
BASE = KUBERNETES / "base"
OLDEST = "1.30"  # the first with the preStop action `sleep` on by default
CORE_GROUPS = {"apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1", "v1"}
SELECTOR = {"app.kubernetes.io/name": "tersor", "app.kubernetes.io/component": "server"}
DEFAULTS = ServerConfig(models=())
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def manifests() -> list[Path]:
    return [path for path in sorted(KUBERNETES.rglob("*.yaml")) if path.stem != "kustomization"]


def core_objects() -> list[tuple[str, dict[str, Any]]]:
    """Every whole object of a core group; the GPU overlay's patch is no whole object."""
    return [
        (f"{path.relative_to(KUBERNETES)}:{document['kind']}", document)
        for path in manifests()
        if path.parent.name != "cuda"
        for document in documents(path)
        if document["apiVersion"] in CORE_GROUPS
    ]


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge as far as our patch goes: named things by name, other lists replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        keys = [*base, *(key for key in patch if key not in base)]
        return {
            key: merged(base[key], patch[key]) if key in base and key in patch
            else patch.get(key, base.get(key))
            for key in keys
        }  # fmt: skip
    named = all(isinstance(item, dict) and "name" in item for item in (*_list(base), *_list(patch)))
    if isinstance(base, list) and isinstance(patch, list) and named:
        by_name = {item["name"]: item for item in base}
        for item in patch:
            by_name[item["name"]] = merged(by_name.get(item["name"], {}), item)
        return list(by_name.values())
    return patch


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def deployment(flavour: str) -> dict[str, Any]:
    base = one(BASE / "deployment.yaml", "Deployment")
    if flavour == "cuda":
        return merged(base, one(KUBERNETES / "cuda" / "deployment.yaml", "Deployment"))  # type: ignore[no-any-return]
    return base


def pod(flavour: str) -> dict[str, Any]:
    spec: dict[str, Any] = deployment(flavour)["spec"]["template"]["spec"]
    return spec


def container(flavour: str) -> dict[str, Any]:
    (only,) = pod(flavour)["containers"]
    return only  # type: ignore[no-any-return]


def arguments(flavour: str) -> ServeArguments:
    return parse(container(flavour)["args"])


both = pytest.mark.parametrize("flavour", ["cpu", "cuda"])


class TestSchemas:
    @pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
    @pytest.mark.parametrize(
        ("name", "document"), core_objects(), ids=[n for n, _ in core_objects()]
    )
    def test_the_real_schema_accepts_it(
        self, name: str, document: dict[str, Any], version: str
    ) -> None:
        kubernetes_validate.validate(document, version, strict=True)

    @pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
    def test_the_real_schema_accepts_the_gpu_deployment(self, version: str) -> None:
        kubernetes_validate.validate(deployment("cuda"), version, strict=True)

    def test_the_schema_would_notice_a_misspelt_field(self) -> None:
        document = deployment("cpu")
        document["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(document, OLDEST, strict=True)


class TestDeployment:
    @both
    def test_stopping_fits_into_the_grace_period(self, flavour: str) -> None:
        pre_stop = container(flavour)["lifecycle"]["preStop"]["sleep"]["seconds"]
        grace = pod(flavour)["terminationGracePeriodSeconds"]
        assert pre_stop + arguments(flavour).drain_seconds + 10 <= grace

    @both
    def test_arguments_ports_and_probes_agree(self, flavour: str) -> None:
        served = arguments(flavour)
        ports = {port["name"]: port["containerPort"] for port in container(flavour)["ports"]}
        assert ports == {"grpc": served.grpc_port, "metrics": served.metrics_port}
        assert ports == {"grpc": DEFAULTS.grpc_port, "metrics": DEFAULTS.metrics_port}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container(flavour)[probe]["grpc"] == {"port": served.grpc_port}

    @both
    def test_readiness_gives_up_before_liveness(self, flavour: str) -> None:
        ready, live = (container(flavour)[f"{kind}Probe"] for kind in ("readiness", "liveness"))
        patience = [p["periodSeconds"] * p["failureThreshold"] for p in (ready, live)]
        assert patience[0] * 3 <= patience[1]
        for probe in (ready, live):
            assert probe["timeoutSeconds"] <= probe["periodSeconds"]

    @both
    def test_serves_the_mounted_folder_on_its_device(self, flavour: str) -> None:
        served = arguments(flavour)
        assert served.device == flavour
        mounts = {mount["mountPath"]: mount for mount in container(flavour)["volumeMounts"]}
        assert served.models == ("/models",)
        assert mounts["/models"]["readOnly"] is True
        volumes = {volume["name"]: volume for volume in pod(flavour)["volumes"]}
        assert set(volumes) == {mount["name"] for mount in mounts.values()}
        claim = volumes[mounts["/models"]["name"]]["persistentVolumeClaim"]["claimName"]
        assert one(BASE / "claim.yaml", "PersistentVolumeClaim")["metadata"]["name"] == claim
        assert "/tmp" in mounts, "the root file system is read-only"

    def test_weights_and_keys_fit_into_the_memory(self) -> None:
        served = arguments("cpu")
        limit = parse_bytes(container("cpu")["resources"]["limits"]["memory"] + "B")
        decoders = 4
        assert served.memory_budget_bytes + decoders * served.kv_cache_bytes <= 0.8 * limit

    @both
    def test_is_guaranteed_its_resources(self, flavour: str) -> None:
        resources = container(flavour)["resources"]
        assert resources["requests"] == resources["limits"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (flavour == "cuda")

    @both
    def test_threads_follow_the_cpu_limit(self, flavour: str) -> None:
        environment = {item["name"]: item for item in container(flavour)["env"]}
        source = environment["OMP_NUM_THREADS"]["valueFrom"]["resourceFieldRef"]
        assert source == {"resource": "limits.cpu"}

    @both
    def test_pod_security_restricted(self, flavour: str) -> None:
        assert violations(pod(flavour)) == []
        assert container(flavour)["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod(flavour)["automountServiceAccountToken"] is False

    def test_the_security_check_notices(self) -> None:
        spec = pod("cpu")
        del spec["securityContext"]["seccompProfile"]
        spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        assert len(violations(spec)) == 2

    def test_image_tags_are_this_version(self) -> None:
        assert container("cpu")["image"] == f"tersor:{VERSION}"
        (kustomization,) = documents(KUBERNETES / "cuda" / "kustomization.yaml")
        assert kustomization["images"] == [{"name": "tersor", "newTag": f"{VERSION}-cuda"}]


class TestSelectors:
    def test_everything_selects_the_pods_of_the_deployment(self) -> None:
        spec = deployment("cpu")["spec"]
        assert spec["template"]["metadata"]["labels"] == SELECTOR
        assert spec["selector"]["matchLabels"] == SELECTOR
        (spread,) = pod("cpu")["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"] == SELECTOR
        for service in documents(BASE / "service.yaml"):
            assert service["spec"]["selector"] == SELECTOR
        budget = one(BASE / "poddisruptionbudget.yaml", "PodDisruptionBudget")
        assert budget["spec"]["selector"]["matchLabels"] == SELECTOR
        policy = one(BASE / "networkpolicy.yaml", "NetworkPolicy")
        assert policy["spec"]["podSelector"]["matchLabels"] == SELECTOR

    def test_services_name_a_port_of_the_container(self) -> None:
        names = {port["name"]: port["containerPort"] for port in container("cpu")["ports"]}
        for service in documents(BASE / "service.yaml"):
            (port,) = service["spec"]["ports"]
            assert names[port["targetPort"]] == port["port"] == DEFAULTS.grpc_port
            assert port["appProtocol"] == "kubernetes.io/h2c"
        headless = one(BASE / "service.yaml", "Service", "tersor-pods")
        assert headless["spec"]["clusterIP"] == "None"

    def test_the_network_policy_opens_both_ports_and_nothing_outward(self) -> None:
        spec = one(BASE / "networkpolicy.yaml", "NetworkPolicy")["spec"]
        opened = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
        assert sorted(opened) == sorted(port["name"] for port in container("cpu")["ports"])
        assert all(rule["from"] for rule in spec["ingress"]), "an empty list would let everybody in"
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["egress"] == []

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("hpa/horizontalpodautoscaler.yaml", "HorizontalPodAutoscaler"),
            ("keda/scaledobject.yaml", "ScaledObject"),
        ],
    )
    def test_autoscalers_scale_the_deployment(self, path: str, kind: str) -> None:
        scaler = one(KUBERNETES / "components" / path, kind)
        reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "tersor"}
        assert scaler["spec"]["scaleTargetRef"] == reference
        assert deployment("cpu")["metadata"]["name"] == "tersor"


class TestOperatorObjects:
    """Objects whose schemas belong to other projects: the fields used are those documented."""

    def test_pod_monitor(self) -> None:
        monitor = one(KUBERNETES / "components/monitoring/podmonitor.yaml", "PodMonitor")
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        assert set(monitor["spec"]) == {"jobLabel", "selector", "podMetricsEndpoints"}
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert set(endpoint) == {"port", "path", "scheme", "interval", "scrapeTimeout"}
        assert endpoint["port"] in {port["name"] for port in container("cpu")["ports"]}
        # The operator takes the job's name from this label; the rules ask for job="tersor".
        assert SELECTOR[monitor["spec"]["jobLabel"]] == "tersor"
        assert monitor["spec"]["selector"]["matchLabels"].items() <= SELECTOR.items()

    def test_scaled_object(self) -> None:
        scaled = one(KUBERNETES / "components/keda/scaledobject.yaml", "ScaledObject")
        assert scaled["apiVersion"] == "keda.sh/v1alpha1"
        spec = scaled["spec"]
        assert set(spec) == {
            "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "advanced",
            "triggers",
        }  # fmt: skip
        (trigger,) = spec["triggers"]
        assert set(trigger) == {"type", "metricType", "metadata"}
        assert trigger["type"] == "prometheus"
        assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert float(trigger["metadata"]["threshold"]) <= DEFAULTS.engine.max_batch_size
        # KEDA hands this to an autoscaler of the core group, whose schema is at hand.
        autoscaler = one(
            KUBERNETES / "components/hpa/horizontalpodautoscaler.yaml", "HorizontalPodAutoscaler"
        )
        autoscaler["spec"]["behavior"] = spec["advanced"]["horizontalPodAutoscalerConfig"][
            "behavior"
        ]
        kubernetes_validate.validate(autoscaler, OLDEST, strict=True)

    def test_prometheus_rule(self) -> None:
        rule = one(KUBERNETES / "components/monitoring/prometheusrule.yaml", "PrometheusRule")
        assert set(rule["spec"]) == {"groups"}
        for group in rule["spec"]["groups"]:
            assert set(group) == {"name", "rules"}
            for item in group["rules"]:
                assert set(item) <= {"alert", "annotations", "expr", "for", "labels", "record"}


class TestKustomizations:
    @pytest.mark.parametrize(
        "path", sorted(DEPLOY.rglob("kustomization.yaml")), ids=lambda p: str(p.parent.name)
    )
    def test_names_only_what_exists_and_leaves_nothing_out(self, path: Path) -> None:
        (document,) = documents(path)
        listed = [
            *document.get("resources", []),
            *document.get("components", []),
            *(patch["path"] for patch in document.get("patches", []) if "path" in patch),
        ]
        for name in listed:
            target = path.parent / name
            assert target.is_file() or (target / "kustomization.yaml").is_file(), name
        beside = {item.name for item in path.parent.glob("*.yaml")} - {path.name}
        assert beside <= set(listed)

    @pytest.mark.conformance
    @pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
    @pytest.mark.parametrize("start", ["base", "cuda"])
    @pytest.mark.parametrize("scaler", ["hpa", "keda"])
    def test_kustomize_builds_it_and_the_schemas_accept_it(
        self, start: str, scaler: str, tmp_path: Path
    ) -> None:
        shutil.copytree(DEPLOY, tmp_path / "deploy")
        overlay = tmp_path / "deploy" / "overlay"
        overlay.mkdir()
        content = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"../kubernetes/{start}"],
            "components": [
                f"../kubernetes/components/{scaler}",
                "../kubernetes/components/monitoring",
            ],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(content))
        done = subprocess.run(
            ["kubectl", "kustomize", overlay], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        built = {item["kind"]: item for item in yaml.safe_load_all(done.stdout)}
        assert "replicas" not in built["Deployment"]["spec"], "the autoscaler owns the number"
        expected = deployment("cuda" if start == "cuda" else "cpu")["spec"]["template"]["spec"]
        got = built["Deployment"]["spec"]["template"]["spec"]
        assert got["containers"][0]["args"] == expected["containers"][0]["args"]
        assert got["containers"][0]["resources"] == expected["containers"][0]["resources"]
        assert built["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
        for item in built.values():
            if item["apiVersion"] in CORE_GROUPS:
                kubernetes_validate.validate(item, OLDEST, strict=True)
