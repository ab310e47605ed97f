"""The default memory budget, on machines and containers made of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tersor.runtime.host.machine import default_memory_budget, host_memory_bytes

CPU = torch.device("cpu")
MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000 kB\n"
PHYSICAL = 16_000_000 * 1024
UNLIMITED_V1 = str((1 << 63) - 4096)


def machine(root: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """Folders in place of /proc and /sys/fs/cgroup."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return {"proc": root / "proc", "cgroups": root / "cgroup"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"proc/meminfo": MEMINFO}, PHYSICAL, id="no control groups"),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/user.slice/app.service\n",
                "cgroup/user.slice/memory.max": "4000000000\n",
                "cgroup/user.slice/app.service/memory.max": "max\n",
            },
            4_000_000_000,
            id="version 2: a group around limits it",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/\n",
                "cgroup/memory.max": "2000000000\n",
            },
            2_000_000_000,
            id="version 2 in a container",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/../../outside\n",
                "cgroup/memory.max": "2000000000\n",
                "outside/memory.max": "1\n",
            },
            2_000_000_000,
            id="version 2: a path out of its root is not followed",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
                "cgroup/memory/memory.limit_in_bytes": "3000000000\n",
                "cgroup/cpu/x/memory.limit_in_bytes": "1\n",
            },
            3_000_000_000,
            id="version 1 in a container that sees the outer path",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "4:hugetlb,memory:/a/b\n",
                "cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
                "cgroup/memory/a/b/memory.limit_in_bytes": "1000000000\n",
            },
            1_000_000_000,
            id="version 1: the inner group",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "4:memory:/\n",
                "cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
            },
            PHYSICAL,
            id="version 1 without a limit",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "nonsense\n\n::\n",
                "cgroup/memory.max": "nonsense",
            },
            PHYSICAL,
            id="nonsense",
        ),
        pytest.param({"proc/meminfo": "MemTotal:\n"}, None, id="a system that does not tell"),
        pytest.param({}, None, id="no Linux"),
    ],
)
def test_the_least_limit_counts(
    tmp_path: Path, files: Mapping[str, str], expected: int | None
) -> None:
    places = machine(tmp_path, files)
    assert host_memory_bytes(**places) == expected
    budget = default_memory_budget(CPU, **places)
    assert budget == (None if expected is None else expected * 4 // 5)


def test_this_machine_tells() -> None:
    total = host_memory_bytes()
    assert total is not None
    assert 1 << 27 < total < 1 << 50


def test_a_gpu_is_asked_for_all_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(device: torch.device) -> tuple[int, int]:
        assert device == torch.device("cuda:1")
        return 5, 1000

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    assert default_memory_budget(torch.device("cuda:1")) == 800
