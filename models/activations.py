"""Which dtype a decoder computes its activations in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

ActivationChoice = Literal["auto", "bf16", "fp32"]


def resolve_activations(choice: ActivationChoice, device: torch.device) -> torch.dtype:
    """The activation dtype for `device`.

    "auto" is bf16 on CUDA. On a CPU it is bf16 only where the CPU has bf16 dot products: without
    them `F.linear` in bf16 took 3-4 times as long as in fp32 for 4 or more rows of 4096 x 4096.

    Raises:
        ValueError: `choice` is none of "auto", "bf16" and "fp32".
    """
    if choice == "bf16":
        return torch.bfloat16
    if choice == "fp32":
        return torch.float32
    if choice != "auto":
        raise ValueError(f"activations must be auto, bf16 or fp32, got {choice!r}")
    if device.type != "cpu" or _cpu_multiplies_bf16():
        return torch.bfloat16
    return torch.float32


def _cpu_multiplies_bf16() -> bool:
    return _cpu_has("_is_avx512_bf16_supported") or _cpu_has("_is_amx_tile_supported")


def _cpu_has(probe: str) -> bool:
    """Asks torch; the probes are private to it, so a build without one counts as a plain CPU."""
    function: Callable[[], bool] | None = getattr(torch.cpu, probe, None)
    return function is not None and function()
