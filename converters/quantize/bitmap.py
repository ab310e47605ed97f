"""A bit per weight and the weights that are not zero: exact, or in eight bits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.converters.quantize.base import Quantized
from tersor.converters.quantize.int8 import quantize_int8
from tersor.kernels.bitmap.reference import pack_bits

# Weights handled at once: packing bits takes eight bytes for each.
_CHUNK_ELEMENTS = 1 << 22
_FLOATS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


def quantize_bitmap(weight: Tensor, *, values: Literal["exact", "int8"] = "exact") -> Quantized:
    """Packs weight [N, K] (bf16, fp16 or fp32, finite), of which many should be zero.

    Planes: bitmap u8 [N, ceil(K / 8)], values [nonzeros] in the weight's dtype, bit for bit, or i8
    with scales bf16 [N] as `quantize_int8` chooses them; codes that became 0 are dropped, too.
    """
    if values == "exact":
        bits = weight.view(torch.int32 if weight.dtype == torch.float32 else torch.int16)
        packed = _packed(weight, bits)  # a -0 is kept
        planes = {"bitmap": ("u8", packed[0]), "values": (_FLOATS[weight.dtype], packed[1])}
        name, squared_error = _FLOATS[weight.dtype], 0.0
    else:
        quantized = quantize_int8(weight)
        codes = quantized.planes["codes"][1]
        packed = _packed(codes, codes)
        planes = {"bitmap": ("u8", packed[0]), "values": ("i8", packed[1])}
        planes["scales"] = quantized.planes["scales"]
        name, squared_error = "int8", quantized.squared_error
    return Quantized(
        layout="bitmap",
        params={"nonzeros": planes["values"][1].numel(), "values": name},
        planes=planes,
        squared_error=squared_error,
    )


def _packed(values: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """The bitmap of where `bits` [N, K] are not zero, and `values` there."""
    bitmaps, kept = [], []
    rows = max(1, _CHUNK_ELEMENTS // bits.shape[1])
    for block, part in zip(values.split(rows), bits.split(rows), strict=True):
        mask = part != 0
        bitmaps.append(pack_bits(mask))
        kept.append(block[mask])
    return torch.cat(bitmaps), torch.cat(kept)
