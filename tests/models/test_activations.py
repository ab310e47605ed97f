"""Which dtype activations are computed in: by device, never by what a processor can do."""

from __future__ import annotations

import pytest
import torch

from tersor.models.activations import resolve_activations

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_explicit_choices_win() -> None:
    for device in (CPU, CUDA):
        assert resolve_activations("bf16", device) is torch.bfloat16
        assert resolve_activations("fp32", device) is torch.float32


def test_auto_is_bf16_on_cuda() -> None:
    assert resolve_activations("auto", CUDA) is torch.bfloat16


def test_auto_is_fp32_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: True, raising=False)
    assert resolve_activations("auto", CPU) is torch.float32


def test_other_choices_are_refused() -> None:
    choice = "fp16"
    with pytest.raises(ValueError, match="auto, bf16 or fp32, got 'fp16'"):
        resolve_activations(choice, CPU)  # type: ignore[arg-type]
