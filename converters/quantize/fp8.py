"""fp8: e4m3 numbers with a scale per row, or per block of 128 x 128."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.converters.quantize.base import CHUNK_ELEMENTS, Quantized

_TOP = 448.0  # the largest e4m3 number
_SMALLEST_SCALE = 2.0**-120  # below it a quotient could overflow; such weights become zero
# absmax / _TOP times these; 1.0 first, so that ties keep plain round-to-nearest. Steps of e4m3
# double with the exponent, so that a scale twice as large gives the same numbers: candidates lie
# within one octave, where they move the largest weights against the steps. On pico's matrices they
# are worth 0.53 dB with a scale per row (32.19), and 0.08 dB with blocks.
_SHRINKS = (1.0, 1.12, 1.26, 1.41, 1.59, 1.78, 0.96)


def quantize_fp8(weight: Tensor, *, block: int = 0, activations: str = "16-bit") -> Quantized:
    """Quantizes weight [N, K] (bf16, fp16 or fp32, finite) to e4m3 numbers.

    Planes: codes f8_e4m3 [N, K], scales f32 [N], or [ceil(N / block), ceil(K / block)]. Each row or
    block takes the candidate scale of least squared error, so the result is never worse than
    round-to-nearest with its absmax at 448; zeros stay exactly zero. `activations` "fp8" has the
    layout round those, too.
    """
    rows, columns = weight.shape
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    shape = (ceil(rows / block), ceil(columns / block)) if block else (rows,)
    scales = torch.empty(shape, dtype=torch.float32)
    squared_error = 0.0
    for start, stop, w in _units(weight, block):
        scale, error = _best_scale(w)
        numbers = _rounded(w / scale)
        if block:
            numbers = numbers.view(-1, block, block).permute(1, 0, 2).reshape(block, -1)
            scales[start // block] = scale[:, 0]
        else:
            scales[start:stop] = scale[:, 0]
        codes[start:stop] = numbers[: stop - start, :columns].to(torch.float8_e4m3fn)
        squared_error += error
    planes = {"codes": ("f8_e4m3", codes), "scales": ("f32", scales)}
    params: dict[str, int | bool | str] = {"block": block}
    if activations == "fp8":
        params["activations"] = activations
    return Quantized(layout="fp8", params=params, planes=planes, squared_error=squared_error)


def _units(weight: Tensor, block: int) -> Iterator[tuple[int, int, Tensor]]:
    """Row ranges (start, stop) with float32 [n, k], each of whose rows shares a scale.

    A row is a row of the weight; or a block, with zeros where it reaches beyond the weight.
    """
    rows, columns = weight.shape
    step = block or max(1, CHUNK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        w = weight[start:stop].to(torch.float32)
        if block:
            w = F.pad(w, (0, -columns % block, 0, block - (stop - start)))
            w = w.view(block, -1, block).permute(1, 0, 2).reshape(-1, block * block)
        yield start, stop, w


def _best_scale(w: Tensor) -> tuple[Tensor, float]:
    """From w [n, k]: scale [n, 1], and the sum of squared errors."""
    base = w.abs().amax(1, keepdim=True) / _TOP
    best_scale = _usable(base)
    best_error = _squared_error(w, best_scale)
    for shrink in _SHRINKS[1:]:
        scale = _usable(base * shrink)
        error = _squared_error(w, scale)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better[:, None], scale, best_scale)
    return best_scale, float(best_error.sum(dtype=torch.float64))


def _usable(scale: Tensor) -> Tensor:
    return torch.where(scale > _SMALLEST_SCALE, scale, torch.ones_like(scale))


def _rounded(w: Tensor) -> Tensor:
    """Rounds float32 to e4m3 numbers, ties to even, at most _TOP; four times faster than a cast.

    A number with exponent e has steps of 2^(e - 3), but not below 2^-9. Adding 1.5 * 2^23 steps and
    taking them away again rounds to whole steps.
    """
    exponent = w.view(torch.int32).bitwise_right_shift(23).bitwise_and_(0xFF).clamp_(min=127 - 6)
    shift = exponent.add_(20).bitwise_left_shift_(23).bitwise_or_(0x400000).view(torch.float32)
    return (w + shift).sub_(shift).clamp_(-_TOP, _TOP)


def _squared_error(w: Tensor, scale: Tensor) -> Tensor:
    """[n, k], [n, 1] -> [n]."""
    return _rounded(w / scale).mul_(scale).sub_(w).square_().sum(1)
