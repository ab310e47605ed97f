"""Plain round-to-nearest, readable and whole: what the searching quantizers must never lose to."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.converters.quantize.base import storable


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """From weight [N, K]: codes int8 [N, K], scales bf16 [N]: absmax of each row at 127."""
    w = weight.to(torch.float32)
    scales = storable(w.abs().amax(1) / 127)  # [N]
    codes = (w / scales[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scales.to(torch.bfloat16)


def round_int4(weight: Tensor, group: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """From weight [N, K]: codes uint8 [N, K], scales bf16 [N, G], zeros uint8 [N, G].

    Asymmetric: [min, max] of each group, widened to hold 0, at codes 0..15. Symmetric: absmax at
    7, zero point 8. `group` 0 is the whole row; the last group may be short.
    """
    w = weight.to(torch.float32)
    spans = w.split(group or w.shape[1], dim=1)
    codes, scales, zeros = zip(*(_round_group(span, symmetric) for span in spans), strict=True)
    return torch.cat(codes, 1), torch.stack(scales, 1), torch.stack(zeros, 1)


def round_fp8(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """From weight [N, K]: codes e4m3 [N, K], and scales f32 [N] or one per block x block weights.

    The absmax of a row (`block` 0) or block is at 448.
    """
    w = weight.to(torch.float32)
    if not block:
        scales = w.abs().amax(1) / 448  # [N]
        return (w / scales[:, None]).to(torch.float8_e4m3fn), scales
    bands = [[part.abs().max() / 448 for part in band.split(block, 1)] for band in w.split(block)]
    scales = torch.tensor(bands)
    wide = scales.repeat_interleave(block, 0)[: w.shape[0]]
    wide = wide.repeat_interleave(block, 1)[:, : w.shape[1]]
    return (w / wide).to(torch.float8_e4m3fn), scales


def _round_group(w: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:  # noqa: FBT001
    if symmetric:
        scale = storable(w.abs().amax(1) / 7)
        zero = torch.full_like(scale, 8)
    else:
        low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
        scale = storable((high - low) / 15)
        zero = (-low / scale).round().clamp(0, 15)
    codes = ((w / scale[:, None]).round() + zero[:, None]).clamp(0, 15)
    return codes.to(torch.uint8), scale.to(torch.bfloat16), zero.to(torch.uint8)
