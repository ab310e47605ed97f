"""Which dtype a decoder computes its activations in."""

from __future__ import annotations

from typing import Literal

import torch

ActivationChoice = Literal["auto", "bf16", "fp32"]


def resolve_activations(choice: ActivationChoice, device: torch.device) -> torch.dtype:
    """The activation dtype for `device`.

    "auto" is bf16 on CUDA and fp32 on every CPU: torch's dense product rounds a row differently
    for different numbers of rows, and on a CPU only fp32 keeps that (about 1e-6) below what changes
    a text. So a text depends neither on what is computed beside it nor on the processor's
    instructions; without bf16 dot products bf16 also takes 3-4 times as long.

    Raises:
        ValueError: `choice` is none of "auto", "bf16" and "fp32".
    """
    if choice == "bf16":
        return torch.bfloat16
    if choice == "fp32":
        return torch.float32
    if choice != "auto":
        raise ValueError(f"activations must be auto, bf16 or fp32, got {choice!r}")
    return torch.float32 if device.type == "cpu" else torch.bfloat16
