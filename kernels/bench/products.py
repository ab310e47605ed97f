"""The products of layouts on a GPU: microseconds, and how near to the bandwidth of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tersor.kernels.bench.samples import Sample
from tersor.kernels.bench.timing import Resident, cold_copies, graph_seconds
from tersor.kernels.errors import LayoutError
from tersor.kernels.layout import Layout

# Weights of Llama-3-8B, [n, k].
LLAMA_8B: Mapping[str, tuple[int, int]] = {
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "lm_head": (128256, 4096),
}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductRow:
    """One product, measured."""

    shape: str
    n: int
    k: int
    form: str
    batch: int
    microseconds: float
    weight_gb_per_second: float
    share_of_copy_bandwidth: float


class Multiplies(Resident, Protocol):
    """A weight [N, K], whoever multiplies by it."""

    def matmul(self, x: Tensor) -> Tensor:
        """Multiplies x [M, K] by its transpose."""
        ...


def measure_products(
    weights: Sequence[Multiplies],
    form: str,
    shape: str,
    size: tuple[int, int],
    batches: Iterable[int],
    *,
    device: torch.device,
    bandwidth: float,
) -> Iterator[ProductRow]:
    """Times x [M, K] bf16 @ weight.T for every M of `batches`, reading the weight from memory.

    Args:
        weights: equal ones, which together evict the cache (`cold_copies`).
        form: what rows call the weight's form,
        shape: and its shape.
        size: n and k.
        batches: rows of x.
        device: a CUDA device.
        bandwidth: of a copy, bytes a second.
    """
    for batch in batches:
        x = torch.randn(batch, size[1], dtype=torch.bfloat16, device=device)
        seconds = graph_seconds(multiplied(weights, x)) / len(weights)
        yield product_row(shape, size, form, batch, seconds, weights[0].resident_bytes, bandwidth)


def copies_of(sample: Sample, size: tuple[int, int], device: torch.device) -> Sequence[Layout]:
    """Enough weights of `size` that one pass over them evicts any cache of the GPU `device`.

    An empty sequence if the layout does not take a weight of this size.
    """
    try:
        return cold_copies(lambda: sample.build(*size, device), device)
    except LayoutError:
        return ()


def multiplied(weights: Sequence[Multiplies], x: Tensor) -> Callable[[], object]:
    """Multiplies x by every weight in turn."""
    return lambda: [weight.matmul(x) for weight in weights]


def product_row(
    shape: str,
    size: tuple[int, int],
    form: str,
    batch: int,
    seconds: float,
    weight_bytes: int,
    bandwidth: float,
) -> ProductRow:
    """The row of a product that took `seconds` to read `weight_bytes`."""
    speed = weight_bytes / seconds
    return ProductRow(
        shape=shape,
        n=size[0],
        k=size[1],
        form=form,
        batch=batch,
        microseconds=round(1e6 * seconds, 2),
        weight_gb_per_second=round(speed / 1e9, 1),
        share_of_copy_bandwidth=round(speed / bandwidth, 4),
    )
