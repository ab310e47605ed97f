"""Random weights of the layout `bitmap`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.bitmap import reference
from tersor.kernels.bitmap.planes import Planes
from tersor.kernels.bitmap.triton import Weight
from tersor.kernels.bitmap.words import WordsForm

DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "int8": torch.int8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BitmapCase:
    """A random weight [n, k] of which about `density` are not zero."""

    planes: dict[str, Tensor]
    values: str
    k: int

    @classmethod
    def random(
        cls, n: int, k: int, *, density: float = 0.5, values: str = "bf16", seed: int = 0
    ) -> BitmapCase:
        rng = torch.Generator().manual_seed(seed)
        mask = torch.rand(n, k, generator=rng) < density
        nonzeros = torch.randn(int(mask.sum()), generator=rng).bfloat16()  # exact in all floats
        if values == "int8":
            nonzeros = torch.randint(-127, 128, nonzeros.shape, generator=rng, dtype=torch.int8)
        planes = {"bitmap": reference.pack_bits(mask), "values": nonzeros.to(DTYPES[values])}
        if values == "int8":
            planes["scales"] = (torch.rand(n, generator=rng) + 0.1).bfloat16()
        return cls(planes=planes, values=values, k=k)

    @property
    def params(self) -> dict[str, int | str]:
        return {"nonzeros": self.planes["values"].numel(), "values": self.values}

    @property
    def weight(self) -> Tensor:
        planes = self.planes
        return reference.dequantize(
            planes["bitmap"], planes["values"], planes.get("scales"), self.k
        )

    def form(self) -> WordsForm:
        planes = self.planes
        return WordsForm.pack(
            Planes(
                k=self.k,
                bitmap=planes["bitmap"],
                values=planes["values"],
                scales=planes.get("scales"),
            )
        )

    def packed(self) -> Weight:
        form = self.form()
        return Weight(form.words, form.offsets, form.starts, form.values, form.scales)
