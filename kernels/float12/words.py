"""GPU form of the `float12` layout: words and lists of escapes (packing.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.checks import as_rows, check_indices, check_operand, shaped_like
from tersor.kernels.float12.ops import float12_decode, float12_matmul
from tersor.kernels.float12.packing import Packed
from tersor.kernels.gemv.finish import Finish, finish_of


@dataclass(frozen=True, slots=True)
class WordsForm:
    """A packed weight. Its methods are those of a `Layout`."""

    packed: Packed

    def prepare(self, activations: torch.dtype) -> None:
        """Nothing: any activations are multiplied as they are."""

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return float12_decode(self.packed).to(dtype or torch.bfloat16)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        self._check(x, bias)
        return shaped_like(float12_matmul(as_rows(x), self.packed, bias), x)

    def partials(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        self._check(x, bias)
        return float12_matmul(as_rows(x), self.packed, bias, Finish.PARTIALS)

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        self._check(x, bias)
        finish = finish_of(activation, self.packed.words.shape[0])
        return shaped_like(float12_matmul(as_rows(x), self.packed, bias, finish), x)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        check_indices(indices, self.packed.words.device)
        found = float12_decode(self.packed, indices.reshape(-1)).to(dtype)
        return found.view(*indices.shape, self.packed.k)

    @property
    def resident_bytes(self) -> int:
        held = self.packed
        tensors = (held.words, held.bases, held.offsets, held.columns, held.values)
        return sum(tensor.nbytes for tensor in tensors)

    def _check(self, x: Tensor, bias: Tensor | None) -> None:
        words = self.packed.words
        check_operand(x, bias, n=words.shape[0], k=self.packed.k, device=words.device)
