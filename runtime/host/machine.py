"""How much memory the device has that weights become resident on, and the budget it allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import torch

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")

_V1_FILE: Final = "memory.limit_in_bytes"
_V2_FILE: Final = "memory.max"


def default_memory_budget(
    device: torch.device, *, proc: Path = PROC, cgroups: Path = CGROUPS
) -> int | None:
    """80 % of the device's memory: the rest is for keys and values, activations and libraries.

    None where the system does not tell.
    """
    if device.type == "cuda":
        total: int | None = torch.cuda.mem_get_info(device)[1]
    else:
        total = host_memory_bytes(proc=proc, cgroups=cgroups)
    return None if total is None else total * 4 // 5


def host_memory_bytes(*, proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """What this process may use: physical memory, or less where a control group limits it.

    None where the system does not tell: there is no Linux `proc` to ask.
    """
    known = [*_physical(proc), *_limits(proc, cgroups)]
    return min(known, default=None)


def _physical(proc: Path) -> Iterator[int]:
    for line in _text(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        amount = rest.split()
        if name == "MemTotal" and amount and amount[0].isdigit():
            yield int(amount[0]) * 1024  # "kB" there means KiB


def _limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Limits of the process's control group and of all groups around it, in both versions."""
    for line in ("0::/", "0:memory:/", *_text(proc / "self" / "cgroup").splitlines()):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            root, file = cgroups, _V2_FILE
        elif "memory" in controllers.split(","):
            root, file = cgroups / "memory", _V1_FILE
        else:
            continue
        # A container may see its group's path as it is outside, where only the root is mounted:
        # then the folders below are missing, and the root's file is its own.
        inside = PurePosixPath(path.lstrip("/"))
        if ".." in inside.parts:
            continue
        for folder in (inside, *inside.parents):
            limit = _text(root / folder / file).strip()
            if limit.isdigit():  # "max" is no limit; version 1 says 2^63, less a page
                yield int(limit)


def _text(path: Path) -> str:
    """A small file of the system, or nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
