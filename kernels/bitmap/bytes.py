"""CPU form of the `bitmap` layout: planes as they are at rest, and where each row's values begin.

`matmul` decodes the weight once per call, some rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.bitmap.planes import Planes, between_zeros, bit_counts, gathered, row_starts
from tersor.kernels.cpu import finished, gemm_dtype
from tersor.kernels.gemv.finish import Finish, finish_product

# 64 x 4096 in fp32 are 1 MiB, which stays in cache for the matmul: 2.9 ns a weight for one row of
# x, 3.3 with 16 rows at a time, 12 with 1024.
ROWS_AT_A_TIME = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesForm:
    """The planes, and where rows begin."""

    k: int
    bitmap: Tensor  # uint8 [N, ceil(k / 8)]
    starts: Tensor  # int32 [N]: values before each row
    values: Tensor  # [2 + nonzeros], 0 at both ends
    scales: Tensor | None  # bf16 [N]
    masks: Tensor  # int64 [256]: eight bytes 0 or 1, the bits of a byte

    @classmethod
    def pack(cls, planes: Planes) -> BytesForm:
        byte = torch.arange(256)[:, None]
        masks = ((byte >> torch.arange(8)) & 1).to(torch.uint8)
        return cls(
            k=planes.k,
            bitmap=planes.bitmap.contiguous(),
            starts=row_starts(bit_counts(planes.bitmap).sum(1, dtype=torch.int64)),
            values=between_zeros(planes.values),
            scales=planes.scales,
            masks=masks.view(torch.int64).view(-1),
        )

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        dtype = gemm_dtype(x)
        wide_x = x.to(dtype)
        parts = [
            F.linear(wide_x, self._decode(slice(start, start + ROWS_AT_A_TIME)).to(dtype))
            for start in range(0, self.bitmap.shape[0], ROWS_AT_A_TIME)
        ]
        return finish_product(finished(torch.cat(parts, dim=1), bias, x.dtype), finish)

    def dequantize(self) -> Tensor:
        return self._decode(slice(None))

    def rows(self, indices: Tensor) -> Tensor:
        return self._decode(indices)

    @property
    def nbytes(self) -> int:
        held = (self.bitmap, self.starts, self.values, self.scales, self.masks)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def _decode(self, which: slice | Tensor) -> Tensor:
        """Rows of the weight, float32 [n, k]."""
        bitmap = self.bitmap[which]
        # A table of eight bytes a byte: 0.1 ns a weight, where shifts and masks take 1.8.
        mask = self.masks.index_select(0, bitmap.reshape(-1).to(torch.int32)).view(torch.uint8)
        mask = mask.view(bitmap.shape[0], -1)[:, : self.k].contiguous()
        scales = None if self.scales is None else self.scales[which]
        return gathered(self.values, mask, self.starts[which], scales)
