"""The "restricted" Pod Security Standard, as far as a serving pod can break it."""

from __future__ import annotations

from typing import Any

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def violations(pod: dict[str, Any]) -> list[str]:
    """What the pod's spec does that the standard forbids; empty when it may run."""
    found = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    shared = pod.get("securityContext", {})
    found += [
        f"volume {volume['name']}: {sorted(set(volume) - {'name'})}"
        for volume in pod.get("volumes", [])
        if not set(volume) - {"name"} <= _VOLUMES
    ]
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        effective = {**shared, **own}
        wanted = {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for key, value in wanted.items():
            if effective.get(key) != value:
                found.append(f"{container['name']}: {key} is {effective.get(key)!r}")
        if effective.get("runAsUser") == 0 or own.get("privileged"):
            found.append(f"{container['name']}: runs as root or privileged")
        found += [
            f"{container['name']}: host port {port['hostPort']}"
            for port in container.get("ports", [])
            if "hostPort" in port
        ]
    return found
