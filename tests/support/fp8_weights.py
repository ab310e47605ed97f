"""Random weights of the `fp8` layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.fp8 import reference
from tersor.kernels.fp8.packing import pack

NAN = 0x7F


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Case:
    """A random fp8 weight that holds every finite code, if it is large enough."""

    codes: Tensor
    scales: Tensor
    block: int

    @classmethod
    def random(cls, n: int, k: int, *, block: int, seed: int = 0) -> Fp8Case:
        rng = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 256, (n, k), generator=rng, dtype=torch.uint8)
        codes[(codes & NAN) == NAN] = 1
        shape = (-(-n // block), -(-k // block)) if block else (n,)
        scales = torch.rand(shape, generator=rng) + 0.1
        return cls(codes=codes.view(torch.float8_e4m3fn), scales=scales, block=block)

    @property
    def planes(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scales": self.scales}

    @property
    def params(self) -> dict[str, int | str]:
        return {"block": self.block}

    @property
    def packed(self) -> Tensor:
        return pack(self.codes, blocks=self.block != 0)

    @property
    def weight(self) -> Tensor:
        return reference.dequantize(self.codes, self.scales)
