"""CPU form of the `codebook4` layout, and of groups that the GPU kernel does not take.

Two columns a byte, low half first. `matmul` decodes the weight once per call, some rows at a time,
two weights for one entry of a table of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.codebook4 import lookup
from tersor.kernels.codebook4.planes import Planes
from tersor.kernels.codebook4.reference import scale_values
from tersor.kernels.cpu import finished, gemm_dtype
from tersor.kernels.gemv.finish import Finish, finish_product

# 256 rows of 4096 columns are 4 MiB in fp32, which stay in cache between decoding, scaling and
# multiplying: 0.77 ns a weight for one row of x, 1.14 with 1024 rows at a time, 1.6 with 16.
ROWS_AT_A_TIME = 256
GPU_ROWS_AT_A_TIME = 1024  # one launch is worth this much work


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsForm:
    """Codes packed along K, scales as at rest."""

    k: int
    group: int
    packed: Tensor  # uint8 [N, ceil(K/2)]
    scales: Tensor  # [N, G]
    pairs: Tensor  # complex64 [256]: two float32, which one gather moves as one
    tensor_scale: Tensor | None  # float32 [1]

    @classmethod
    def pack(cls, planes: Planes) -> PairsForm:
        k = planes.codes.shape[1]
        codes = F.pad(planes.codes, (0, k % 2))
        pairs = lookup.pairs(planes.table).contiguous()
        return cls(
            k=k,
            group=planes.group,
            packed=codes[:, 0::2] | (codes[:, 1::2] << 4),
            scales=planes.scales.contiguous(),
            pairs=torch.view_as_complex(pairs),
            tensor_scale=planes.tensor_scale,
        )

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        dtype = torch.bfloat16 if x.is_cuda else gemm_dtype(x)
        wide_x = x.to(dtype)
        count = GPU_ROWS_AT_A_TIME if x.is_cuda else ROWS_AT_A_TIME
        parts = [
            F.linear(wide_x, self._decode(slice(start, start + count)).to(dtype))
            for start in range(0, self.packed.shape[0], count)
        ]
        return finish_product(finished(torch.cat(parts, dim=1), bias, x.dtype), finish)

    def dequantize(self) -> Tensor:
        return self._decode(slice(None))

    def rows(self, indices: Tensor) -> Tensor:
        return self._decode(indices)

    @property
    def nbytes(self) -> int:
        held = (self.packed, self.scales, self.pairs, self.tensor_scale)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def _decode(self, which: slice | Tensor) -> Tensor:
        """Rows of the weight, float32 [n, K]."""
        packed = self.packed[which]
        values = self.pairs.index_select(0, packed.reshape(-1).to(torch.int32))
        weight = torch.view_as_real(values).view(packed.shape[0], -1)  # [n, K rounded up to even]
        scales = scale_values(self.scales[which])
        whole = self.k - self.k % self.group
        if whole:  # all groups but a short last one
            groups = weight[:, :whole].unflatten(1, (-1, self.group))
            groups.mul_(scales[:, : whole // self.group, None])
        if whole < self.k:
            weight[:, whole:].mul_(scales[:, -1:])
        if self.tensor_scale is not None:
            weight.mul_(self.tensor_scale)
        return weight[:, : self.k]
