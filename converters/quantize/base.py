"""What a quantizer gives back, and how the work is cut so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements handled at once: 1 MiB in float32, so that the search stays in a core's cache.
CHUNK_ELEMENTS = 1 << 18
# Elements on which a step for a whole tensor is chosen: 4 MiB in float32.
SAMPLE_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A quantized matrix [N, K]."""

    layout: str
    params: Mapping[str, int | bool | str]
    planes: Mapping[str, tuple[str, Tensor]]  # plane name -> (dtype name, host tensor), in order
    squared_error: float  # sum over all weights of (decoded - given)^2


def row_chunks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges of weight [N, K] with their float32 values [n, K]."""
    rows = max(1, CHUNK_ELEMENTS // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        span = slice(start, min(start + rows, weight.shape[0]))
        yield span, weight[span].to(torch.float32)


def sampled_rows(weight: Tensor) -> Tensor:
    """Evenly spread rows of weight [N, K], about SAMPLE_ELEMENTS in float32, all where it fits."""
    stride = max(1, weight.numel() // SAMPLE_ELEMENTS)
    return weight[::stride].to(torch.float32)


def storable(scale: Tensor) -> Tensor:
    """Scales as they will be stored: rounded to bf16 *before* codes are chosen, never zero."""
    rounded = scale.to(torch.bfloat16).to(torch.float32)
    return torch.where(rounded > 0, rounded, torch.ones_like(rounded))
