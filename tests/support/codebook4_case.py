"""Random weights of the layout `codebook4`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.codebook4 import reference
from tersor.kernels.codebook4.lookup import gpu_lookup, is_mirrored
from tersor.kernels.codebook4.planes import Planes
from tersor.kernels.codebook4.scales import ScaleGrid
from tersor.kernels.codebook4.triton import Weight
from tersor.kernels.int4.packing import pack_words

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook4Case:
    """A random weight, with any table or that of FP4."""

    planes: dict[str, Tensor]
    group: int
    scale: str

    @classmethod
    def random(
        cls, n: int, k: int, *, group: int, scale: str, fp4: bool = False, seed: int = 0
    ) -> Codebook4Case:
        rng = torch.Generator().manual_seed(seed)
        shape = (n, -(-k // (group or k)))
        floats = torch.rand(shape, generator=rng) + 0.1
        # From 2^-12; 0 is the exponent whose value is subnormal.
        exponents = torch.randint(115, 130, shape, generator=rng, dtype=torch.uint8)
        exponents.view(-1)[0] = 0
        e4m3 = (floats * torch.tensor([1.0, -1.0])[torch.arange(shape[1]) % 2]).clamp(-400, 400)
        scales = {
            "bf16": floats.bfloat16(),
            "f32": floats,
            "e8m0": exponents,
            "e4m3": e4m3.to(torch.float8_e4m3fn),
        }[scale]
        planes = {
            "codes": torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8),
            "scales": scales,
            "table": FP4.clone() if fp4 else torch.randn(16, generator=rng),
        }
        if scale == "e4m3":
            planes["tensor_scale"] = torch.tensor([0.37])
        return cls(planes=planes, group=group, scale=scale)

    @property
    def params(self) -> dict[str, int | str]:
        return {"group": self.group, "scale": self.scale}

    @property
    def weight(self) -> Tensor:
        """As defined."""
        return self._decoded(self.planes["table"])

    @property
    def rounded(self) -> Tensor:
        """With the table rounded to bf16, as GPU kernels have it."""
        return self._decoded(self.planes["table"].bfloat16().float())

    def canonical(self) -> Planes:
        return Planes(
            codes=self.planes["codes"],
            scales=self.planes["scales"],
            table=self.planes["table"],
            tensor_scale=self.planes.get("tensor_scale"),
            scale=self.scale,
            group=self.group or self.planes["codes"].shape[1],
        )

    def packed(self) -> Weight:
        planes = self.canonical()
        grid = ScaleGrid(planes.group, planes.codes.shape[1], self.scale)
        return Weight(
            pack_words(planes.codes, grid.bw),
            grid.pack(planes.scales),
            gpu_lookup(planes.table),
            planes.tensor_scale,
            grid,
            is_mirrored(planes.table),
        )

    def _decoded(self, table: Tensor) -> Tensor:
        planes = self.planes
        scale = planes.get("tensor_scale")
        return reference.dequantize(planes["codes"], planes["scales"], table, self.group, scale)
