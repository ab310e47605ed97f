"""Others' products by compressed weights on a GPU, as `gpu_matmul.py` and tests compare with them.

Each peer is made from random codes: speed does not depend on their values. A peer that this torch
or this machine lacks raises when it is made or multiplies, which the caller reports.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A weight of somebody else's."""

    tensors: tuple[Tensor, ...]  # what a product reads
    multiply: Callable[[Tensor], Tensor]

    def matmul(self, x: Tensor) -> Tensor:
        return self.multiply(x)

    @property
    def resident_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


MakePeer = Callable[[int, int, torch.device], Peer]


def cublas_bf16(n: int, k: int, device: torch.device) -> Peer:
    weight = torch.randn(n, k, dtype=torch.bfloat16, device=device)
    return Peer(tensors=(weight,), multiply=lambda x: F.linear(x, weight))


def tinygemm_int4(n: int, k: int, device: torch.device) -> Peer:
    """Int4 in torch's own kernel, with a scale and zero for every 128 columns."""
    pairs = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=device)
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)  # noqa: SLF001
    scales_zeros = torch.rand(k // GROUP, n, 2, device=device).to(torch.bfloat16)
    multiply = torch.ops.aten._weight_int4pack_mm  # noqa: SLF001
    return Peer(
        tensors=(packed, scales_zeros), multiply=lambda x: multiply(x, packed, GROUP, scales_zeros)
    )


def torch_int8(n: int, k: int, device: torch.device) -> Peer:
    """bf16 activations and int8 weights, where torch has a CUDA kernel for them."""
    codes = _bytes(n, k, device)
    scales = torch.rand(n, device=device).to(torch.bfloat16)
    multiply = torch.ops.aten._weight_int8pack_mm  # noqa: SLF001
    return Peer(tensors=(codes, scales), multiply=lambda x: multiply(x, codes, scales))


def torch_int8_int8(n: int, k: int, device: torch.device) -> Peer:
    """int8 activations: their rounding is not part of the time, so this flatters it."""
    codes = _bytes(n, k, device)

    def multiply(x: Tensor) -> Tensor:
        return torch._int_mm(x, codes.t())  # noqa: SLF001

    return Peer(tensors=(codes,), multiply=_with_activations(multiply, torch.int8))


def torch_fp8_fp8(n: int, k: int, device: torch.device) -> Peer:
    """fp8 activations, rounded outside of the time, and one scale for the whole weight."""
    codes = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)

    def multiply(x: Tensor) -> Tensor:
        return torch._scaled_mm(  # noqa: SLF001
            x, codes.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )

    return Peer(tensors=(codes,), multiply=_with_activations(multiply, torch.float8_e4m3fn))


def gemlite(bits: int) -> MakePeer:
    """Kernels of gemlite, tuned by its own search at the first product of a batch size."""

    def make(n: int, k: int, device: torch.device) -> Peer:
        library: Any = importlib.import_module("gemlite")
        group = GROUP if bits == 4 else k
        linear = library.GemLiteLinear(
            bits,
            group_size=group,
            in_features=k,
            out_features=n,
            input_dtype=library.DType.BF16,
            output_dtype=library.DType.BF16,
        )
        scales = torch.rand(n, k // group, device=device).to(torch.bfloat16)
        if bits == 4:
            codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device)
            linear.pack(codes, scales, torch.full_like(scales, 8), None)
        else:
            linear.pack(_bytes(n, k, device), scales, None, None)
        return Peer(tensors=(linear.W_q, linear.scales, linear.zeros), multiply=linear)

    return make


PEERS: Mapping[str, MakePeer] = {
    "cuBLAS bf16": cublas_bf16,
    "torch int4 g128": tinygemm_int4,
    "torch int8": torch_int8,
    "torch int8 x int8": torch_int8_int8,
    "torch fp8 x fp8": torch_fp8_fp8,
    "gemlite int4 g128": gemlite(4),
    "gemlite int8": gemlite(8),
}
# Peers that search before their first product of a shape and batch, for a minute or more.
SLOW = ("gemlite int4 g128", "gemlite int8")


def _bytes(n: int, k: int, device: torch.device) -> Tensor:
    return torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)


def _with_activations(
    multiply: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Takes bf16 and rounds it once per tensor: all copies of a weight are given the same one."""
    rounded: dict[tuple[int, int], Tensor] = {}

    def run(x: Tensor) -> Tensor:
        key = (x.data_ptr(), x.shape[0])
        if key not in rounded:
            rounded.clear()
            rounded[key] = x.to(dtype)
        return multiply(rounded[key])

    return run
