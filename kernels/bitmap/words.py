"""GPU form of the `bitmap` layout: bits and values in the order of packing.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.bitmap.ops import bitmap_matmul
from tersor.kernels.bitmap.packing import dequantize_words, pack_mask, pack_offsets, pack_values
from tersor.kernels.bitmap.planes import Planes, between_zeros, bit_counts, row_starts
from tersor.kernels.bitmap.reference import unpack_bits
from tersor.kernels.gemv.finish import Finish

ELEMENTS_TO_PACK = 1 << 24  # packing takes some 20 bytes a weight: in blocks of rows


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsForm:
    """Words, where each row's and each word's values begin, and the values."""

    k: int
    words: Tensor  # int32 [N, 4 * blocks]
    offsets: Tensor  # int16 or int32 [N, 4 * blocks]
    starts: Tensor  # int32 [N]
    values: Tensor  # [2 + nonzeros], 0 at both ends
    scales: Tensor | None  # bf16 [N]

    @classmethod
    def pack(cls, planes: Planes) -> WordsForm:
        counts = bit_counts(planes.bitmap).sum(1, dtype=torch.int64)
        starts = row_starts(counts)
        words, values = [], []
        rows = max(1, ELEMENTS_TO_PACK // planes.k)
        for first in range(0, planes.bitmap.shape[0], rows):
            block = slice(first, first + rows)
            mask = unpack_bits(planes.bitmap[block], planes.k)
            words.append(pack_mask(mask))
            start = int(starts[first])
            stop = start + int(counts[block].sum())
            values.append(pack_values(mask, planes.values[start:stop]))
        packed = torch.cat(words)
        return cls(
            k=planes.k,
            words=packed,
            offsets=pack_offsets(packed, planes.k),
            starts=starts,
            values=between_zeros(torch.cat(values)),
            scales=planes.scales,
        )

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        return bitmap_matmul(
            x, self.words, self.offsets, self.starts, self.values, self.scales, bias, finish
        )

    def dequantize(self) -> Tensor:
        return dequantize_words(self.words, self.starts, self.values, self.scales, self.k)

    def rows(self, indices: Tensor) -> Tensor:
        scales = None if self.scales is None else self.scales[indices]
        return dequantize_words(
            self.words[indices], self.starts[indices], self.values, scales, self.k
        )

    @property
    def nbytes(self) -> int:
        held = (self.words, self.offsets, self.starts, self.values, self.scales)
        return sum(tensor.nbytes for tensor in held if tensor is not None)
