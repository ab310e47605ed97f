"""The forms in which an `int6` weight can be resident: bytes on a CPU, words on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.gemv.finish import Finish
from tersor.kernels.int6 import reference
from tersor.kernels.int6.ops import int6_matmul_words
from tersor.kernels.int6.packing import dequantize_words, pack
from tersor.kernels.int8 import packing as int8_packing
from tersor.kernels.int8.ops import int8_matmul
from tersor.kernels.outliers.rows import add_rows
from tersor.kernels.outliers.slices import SlicedOutliers

ROWS_TO_PACK = 4096  # packing widens codes to int32: in blocks, to bound what that takes


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesForm:
    """A code a byte, as in the `int8` layout, whose CPU path it takes."""

    k: int
    codes: Tensor  # int8 [N, Kp]
    scales: Tensor  # bf16 [N]

    @classmethod
    def pack(cls, codes: Tensor, scales: Tensor) -> BytesForm:
        """Packs codes int8 [N, K] with scales bf16 [N] or [1]."""
        n, k = codes.shape
        return cls(k=k, codes=int8_packing.pack(codes), scales=scales.expand(n).contiguous())

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        return int8_matmul(x, self.codes, self.scales, bias, finish)

    def dequantize(self) -> Tensor:
        return reference.dequantize(self.codes[:, : self.k], self.scales)

    def rows(self, indices: Tensor) -> Tensor:
        return reference.dequantize(self.codes[indices, : self.k], self.scales[indices])

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsForm:
    """Low four bits in int4's words, high two beside them."""

    k: int
    words: Tensor  # int32 [N, W]
    high: Tensor  # int16 [N, W]
    scales: Tensor  # bf16 [N], or [1]
    outliers: SlicedOutliers | None

    @classmethod
    def pack(cls, codes: Tensor, scales: Tensor, outliers: SlicedOutliers | None) -> WordsForm:
        """Packs codes int8 [N, K] with scales bf16 [N] or [1]."""
        words, high = zip(*(pack(part) for part in codes.split(ROWS_TO_PACK)), strict=True)
        return cls(
            k=codes.shape[1],
            words=torch.cat(words),
            high=torch.cat(high),
            scales=scales.contiguous(),
            outliers=outliers,
        )

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        return int6_matmul_words(x, self.words, self.high, self.scales, self.outliers, bias, finish)

    def dequantize(self) -> Tensor:
        return self.rows(torch.arange(self.words.shape[0], device=self.words.device))

    def rows(self, indices: Tensor) -> Tensor:
        scales = self.scales if self.scales.shape[0] == 1 else self.scales[indices]
        weight = dequantize_words(self.words[indices], self.high[indices], scales, self.k)
        return weight if self.outliers is None else add_rows(weight, self.outliers.lookup(indices))

    @property
    def nbytes(self) -> int:
        parts = (self.words, self.high, self.scales, self.outliers)
        return sum(part.nbytes for part in parts if part is not None)
