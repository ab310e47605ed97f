"""GPU form of the `codebook4` layout: words of codes, as those of `int4`, and words of scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.codebook4.lookup import gpu_lookup, is_mirrored
from tersor.kernels.codebook4.ops import codebook4_matmul, dequantize_words
from tersor.kernels.codebook4.planes import Planes
from tersor.kernels.codebook4.scales import ScaleGrid
from tersor.kernels.gemv.finish import Finish
from tersor.kernels.int4.packing import pack_words

ROWS_TO_PACK = 4096  # packing widens codes to int32: in blocks, to bound what that takes


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsForm:
    """Codes in words (kernels/int4/packing.py), scales in words (scales.py)."""

    grid: ScaleGrid
    words: Tensor  # int32 [N, W]
    scales: Tensor  # int32 [blocks, words, N]
    table: Tensor  # float32 [16]
    lookup: Tensor  # int32 [264]
    mirrored: bool
    tensor_scale: Tensor | None  # float32 [1]

    @classmethod
    def pack(cls, planes: Planes) -> WordsForm:
        """Packs a weight whose group `kernels.int4.packing.block_words` takes."""
        grid = ScaleGrid(planes.group, planes.codes.shape[1], planes.scale)
        parts = [pack_words(part, grid.bw) for part in planes.codes.split(ROWS_TO_PACK)]
        return cls(
            grid=grid,
            words=torch.cat(parts),
            scales=grid.pack(planes.scales),
            table=planes.table,
            lookup=gpu_lookup(planes.table),
            mirrored=is_mirrored(planes.table),
            tensor_scale=planes.tensor_scale,
        )

    def matmul(self, x: Tensor, bias: Tensor | None, finish: Finish) -> Tensor:
        return codebook4_matmul(
            x,
            self.words,
            self.scales,
            self.lookup,
            self.tensor_scale,
            self.grid,
            bias,
            finish,
            mirrored=self.mirrored,
        )

    def dequantize(self) -> Tensor:
        return self._decode(self.words, self.scales)

    def rows(self, indices: Tensor) -> Tensor:
        return self._decode(self.words[indices], self.scales[:, :, indices])

    @property
    def nbytes(self) -> int:
        held = (self.words, self.scales, self.table, self.lookup, self.tensor_scale)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def _decode(self, words: Tensor, scales: Tensor) -> Tensor:
        return dequantize_words(words, scales, self.table, self.tensor_scale, self.grid)
