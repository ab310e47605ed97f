"""GPU form of the `int4` layout: codes in words, scales and zeros beside them (packing.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.gemv.finish import Finish
from tersor.kernels.int4.ops import int4_matmul_words
from tersor.kernels.int4.packing import dequantize_words, pack_scales, pack_words
from tersor.kernels.int4.planes import Planes
from tersor.kernels.interleave import interleave
from tersor.kernels.outliers.rows import add_rows
from tersor.kernels.outliers.slices import SlicedOutliers

ROWS_TO_PACK = 4096  # packing widens codes to int32: in blocks, to bound what that takes


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsForm:
    """Codes in words; the scales of a block of them lie beside those of the neighbouring rows."""

    k: int
    group: int
    words: Tensor  # int32 [N, W]
    scales: Tensor  # bf16 [S, N, P], or [N], or [1]
    zeros: Tensor | None  # uint8, as the scales
    outliers: SlicedOutliers | None

    @classmethod
    def pack(cls, planes: Planes, bw: int, outliers: SlicedOutliers | None = None) -> WordsForm:
        """Packs for blocks of `bw` words (see `block_words`)."""
        k, group, zeros = planes.codes.shape[1], planes.group, planes.zeros
        return cls(
            k=k,
            group=group,
            words=_pack_codes(planes.codes, bw),
            scales=pack_scales(planes.scales, group, k),
            zeros=None if zeros is None else pack_scales(zeros, group, k),
            outliers=outliers,
        )

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        return int4_matmul_words(
            x, self.words, self.scales, self.zeros, self.group, bias, finish, self.outliers
        )

    def dequantize(self) -> Tensor:
        return self.rows(torch.arange(self.words.shape[0], device=self.words.device))

    def rows(self, indices: Tensor) -> Tensor:
        scales = _of_rows(self.scales, indices)
        zeros = None if self.zeros is None else _of_rows(self.zeros, indices)
        weight = dequantize_words(self.words[indices], scales, zeros, self.group, self.k)
        return weight if self.outliers is None else add_rows(weight, self.outliers.lookup(indices))

    @property
    def nbytes(self) -> int:
        parts = (self.words, self.scales, self.zeros, self.outliers)
        return sum(part.nbytes for part in parts if part is not None)


def _pack_codes(codes: Tensor, bw: int) -> Tensor:
    """`pack_words` of codes uint8 [N, K], by one kernel where there is one."""
    if codes.device.type != "cpu":
        return interleave(codes.contiguous(), 4, bw)
    return torch.cat([pack_words(part, bw) for part in codes.split(ROWS_TO_PACK)])


def _of_rows(packed: Tensor, indices: Tensor) -> Tensor:
    """The packed scales or zeros of some rows, packed."""
    if packed.dim() == 3:
        return packed[:, indices]
    return packed if packed.shape[0] == 1 else packed[indices]
