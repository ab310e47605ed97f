"""Fallback form of the `int4` layout, for groups that no fast kernel takes (not multiples of 32).

Two columns a byte, low half first. `matmul` decodes the weight once per call, some rows at a time:
right everywhere, but it reads and writes the decoded weight, so recipes should stay with groups of
32, 64, 128 or a whole row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.cpu import finished, gemm_dtype
from tersor.kernels.gemv.finish import Finish, finish_product
from tersor.kernels.int4 import reference
from tersor.kernels.int4.planes import Planes

ROWS_AT_A_TIME = 1024  # bounds the decoded copy; on a GPU one launch is worth this much work


@dataclass(frozen=True, slots=True, kw_only=True)
class NibblesForm:
    """Codes packed along K, planes otherwise as at rest."""

    k: int
    group: int
    packed: Tensor  # uint8 [N, ceil(K/2)]
    scales: Tensor  # bf16 [N, G]
    zeros: Tensor | None  # uint8 [N, G]

    @classmethod
    def pack(cls, planes: Planes) -> NibblesForm:
        k = planes.codes.shape[1]
        codes = F.pad(planes.codes, (0, k % 2))
        return cls(
            k=k,
            group=planes.group,
            packed=codes[:, 0::2] | (codes[:, 1::2] << 4),
            scales=planes.scales_of_rows().contiguous(),
            zeros=None if planes.zeros is None else planes.zeros_of_rows().contiguous(),
        )

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        dtype = torch.bfloat16 if x.is_cuda else gemm_dtype(x)
        wide_x = x.to(torch.bfloat16).to(dtype)  # rounded, as by every other form
        parts = [
            F.linear(wide_x, self._decode(slice(start, start + ROWS_AT_A_TIME)).to(dtype))
            for start in range(0, self.packed.shape[0], ROWS_AT_A_TIME)
        ]
        return finish_product(finished(torch.cat(parts, dim=1), bias, x.dtype), finish)

    def dequantize(self) -> Tensor:
        return self._decode(slice(None))

    def rows(self, indices: Tensor) -> Tensor:
        return self._decode(indices)

    @property
    def nbytes(self) -> int:
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        return self.packed.nbytes + self.scales.nbytes + zeros

    def _decode(self, which: slice | Tensor) -> Tensor:
        packed = self.packed[which]
        codes = torch.stack((packed & 15, packed >> 4), dim=-1).view(packed.shape[0], -1)
        zeros = None if self.zeros is None else self.zeros[which]
        return reference.dequantize(codes[:, : self.k], self.scales[which], zeros, self.group)
