"""Four bits that index a table (NF4, FP4, powers of two), with a scale per group of columns."""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.converters.quantize.base import Quantized, row_chunks, storable
from tersor.converters.quantize.tables import CODEBOOKS, Codebook

_REFITS = 2
_E4M3_MAX = 448.0
_E8M0_BIAS = 127


def quantize_codebook4(weight: Tensor, method: str, *, group: int) -> Quantized:
    """Quantizes weight [N, K] (bf16, fp16 or fp32, finite) to codes into a table of CODEBOOKS.

    Planes: codes u4 [N, K], scales [N, G], table f32 [16] and, where scales are e4m3, tensor_scale
    f32 [1]. `group` columns share a scale, 0 is the whole row, the last group may be short. Each
    group takes the scale of least squared error among those of the codebook's spans and
    least-squares refits, as it will be stored; zeros stay exactly zero.
    """
    rows, columns = weight.shape
    width = group or columns
    groups = ceil(columns / width)
    search = _Search(CODEBOOKS[method], weight)
    codes = torch.empty((rows, columns), dtype=torch.uint8)
    scales = torch.empty((rows, groups), dtype=search.scale_dtype)
    squared_error = 0.0
    for span, chunk in row_chunks(weight):
        # Padding is 0, which every table has: it adds no error and no range.
        w = F.pad(chunk, (0, groups * width - columns)).view(-1, groups, width)  # [n, G, g]
        scale, error = search.best(w)
        codes[span] = search.codes(w, scale).view(-1, groups * width)[:, :columns]
        scales[span] = search.encoded(scale[..., 0])
        squared_error += float(error.sum(dtype=torch.float64))
    scale_name = search.book.scale
    names = {"bf16": "bf16", "e8m0": "u8", "e4m3": "f8_e4m3"}
    planes = {"codes": ("u4", codes), "scales": (names[scale_name], scales)}
    planes["table"] = ("f32", search.table)
    if scale_name == "e4m3":
        planes["tensor_scale"] = ("f32", search.tensor_scale)
    return Quantized(
        layout="codebook4",
        params={"group": group, "scale": scale_name},
        planes=planes,
        squared_error=squared_error,
    )


class _Search:
    """Nearest codes for given scales, and the best scale of each group."""

    def __init__(self, book: Codebook, weight: Tensor) -> None:
        self.book = book
        self.table = torch.tensor(book.values)
        # Of equal values (0 and -0) the first has its code.
        self._values, order = self.table.sort(stable=True)
        self._order = order.to(torch.uint8)
        self._middles = (self._values[1:] + self._values[:-1]) / 2
        self._top = float(self.table.abs().max())
        self.scale_dtype = {
            "bf16": torch.bfloat16,
            "e8m0": torch.uint8,
            "e4m3": torch.float8_e4m3fn,
        }[book.scale]
        largest = float(weight.abs().max()) / (_E4M3_MAX * self._top)
        self.tensor_scale = torch.tensor([largest or 1.0]).clamp_(min=2.0**-126)

    def codes(self, w: Tensor, scale: Tensor) -> Tensor:
        """The nearest codes, uint8, for w [n, G, g] and scale [n, G, 1]."""
        return self._order[self._places(w, scale)]

    def best(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """From w [n, G, g]: scale [n, G, 1], as it will be stored, and squared error [n, G]."""
        base = w.abs().amax(-1, keepdim=True) / self._top
        scale = self._stored(base * self.book.spans[0])
        error = self._squared_error(w, scale)
        for step in range(1, len(self.book.spans) + _REFITS):
            if step < len(self.book.spans):
                candidate = self._stored(base * self.book.spans[step])
            else:
                levels = self._values[self._places(w, scale)]
                energy = levels.square().sum(-1, keepdim=True).clamp_(min=1e-9)
                fitted = (levels * w).sum(-1, keepdim=True) / energy
                candidate = self._stored(fitted)
            candidate_error = self._squared_error(w, candidate)
            better = candidate_error < error
            error = torch.where(better, candidate_error, error)
            scale = torch.where(better[..., None], candidate, scale)
        return scale, error

    def encoded(self, scale: Tensor) -> Tensor:
        """Scales that `best` gave, in the dtype of their plane."""
        if self.book.scale == "e8m0":
            return (scale.log2() + _E8M0_BIAS).round_().to(torch.uint8)
        if self.book.scale == "e4m3":
            return (scale / self.tensor_scale).to(torch.float8_e4m3fn)
        return scale.to(torch.bfloat16)

    def _stored(self, scale: Tensor) -> Tensor:
        """Scales as they will be stored, never zero."""
        if self.book.scale == "e8m0":
            exponents = scale.clamp(min=2.0**-126).log2().floor_()
            return torch.where(scale > 0, exponents.exp2(), 1.0)
        if self.book.scale == "e4m3":
            shares = (scale / self.tensor_scale).clamp_(max=_E4M3_MAX).to(torch.float8_e4m3fn)
            wide = shares.to(torch.float32)
            return torch.where(wide > 0, wide, 1.0) * self.tensor_scale
        return storable(scale)

    def _places(self, w: Tensor, scale: Tensor) -> Tensor:
        """Where the nearest values are among the sorted ones."""
        return torch.bucketize(w / scale, self._middles, out_int32=True)

    def _squared_error(self, w: Tensor, scale: Tensor) -> Tensor:
        decoded = self._values[self._places(w, scale)].mul_(scale)
        return decoded.sub_(w).square_().sum(-1)
