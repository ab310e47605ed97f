"""GPU form of the `int4` layout: codes in words (packing.py), scales and zeros transposed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.gemv.finish import Finish
from tersor.kernels.int4.form import Planes
from tersor.kernels.int4.ops import int4_matmul_words
from tersor.kernels.int4.packing import dequantize_words, pack_words
from tersor.kernels.interleave import interleave

ROWS_TO_PACK = 4096  # packing widens codes to int32: in blocks, to bound what that takes


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsForm:
    """Codes in words; a scale per group and row lies beside those of the neighbouring rows."""

    k: int
    group: int
    words: Tensor  # int32 [N, W]
    scales: Tensor  # bf16 [G, N]
    zeros: Tensor | None  # uint8 [G, N]

    @classmethod
    def pack(cls, planes: Planes, bw: int) -> WordsForm:
        """Packs for blocks of `bw` words (see `block_words`)."""
        zeros = planes.zeros
        return cls(
            k=planes.codes.shape[1],
            group=planes.group,
            words=_pack_codes(planes.codes, bw),
            scales=planes.scales.T.contiguous(),
            zeros=None if zeros is None else zeros.T.contiguous(),
        )

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        return int4_matmul_words(x, self.words, self.scales, self.zeros, self.group, bias, finish)

    def dequantize(self) -> Tensor:
        return dequantize_words(self.words, self.scales, self.zeros, self.group, self.k)

    def rows(self, indices: Tensor) -> Tensor:
        zeros = None if self.zeros is None else self.zeros[:, indices]
        return dequantize_words(
            self.words[indices], self.scales[:, indices], zeros, self.group, self.k
        )

    @property
    def nbytes(self) -> int:
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        return self.words.nbytes + self.scales.nbytes + zeros


def _pack_codes(codes: Tensor, bw: int) -> Tensor:
    """`pack_words` of codes uint8 [N, K], by one kernel where there is one."""
    if codes.device.type != "cpu":
        return interleave(codes.contiguous(), 4, bw)
    return torch.cat([pack_words(part, bw) for part in codes.split(ROWS_TO_PACK)])
