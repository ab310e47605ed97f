"""Magnitude pruning in place, exact in its fraction and independent of ties.

The trailing underscore says so: both functions change the weight they are given.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 22
_DIGIT_BITS = 16


def prune_magnitude_(weight: Tensor, fraction: float) -> float:
    """Zeroes the round(fraction * numel) weights of least magnitude; ties fall in row-major order.

    Args:
        weight: contiguous bf16, fp16 or fp32, any shape; changed in place.
        fraction: share of zeros afterwards (more if there were more before), 0..1.

    Returns:
        The energy that went: the sum of squares of the zeroed weights.
    """
    flat = weight.view(-1)
    remaining = round(fraction * flat.numel())
    if remaining == 0:
        return 0.0
    threshold, ties = _kth_magnitude(flat, remaining)
    energy = 0.0
    for chunk in flat.split(_CHUNK_ELEMENTS):
        magnitudes = _magnitude_bits(chunk)
        drop = magnitudes < threshold
        if ties:
            level = (magnitudes == threshold).nonzero()[:ties, 0]
            drop[level] = True
            ties -= level.numel()
        energy += _zero_(chunk, drop)
    return energy


def prune_pattern_(weight: Tensor, keep: int, of: int) -> float:
    """Keeps the `keep` largest magnitudes of every `of` consecutive columns (2:4 keeps 2 of 4).

    A short last block keeps at most `keep`; ties keep the leftmost. `weight` is contiguous
    [N, K] and is changed in place. Returns the energy that went, as `prune_magnitude_`.
    """
    rows = max(1, _CHUNK_ELEMENTS // max(1, weight.shape[1]))
    energy = 0.0
    for span in weight.split(rows):
        for start, width in _blocks(span.shape[1], of):
            block = span[:, start : start + width]
            pieces = block.reshape(block.shape[0], -1, min(of, width))  # [n, blocks, of]
            order = _magnitude_bits(pieces).sort(dim=-1, descending=True, stable=True).indices
            drop = torch.ones_like(pieces, dtype=torch.bool)
            drop.scatter_(-1, order[..., :keep], value=False)
            energy += _zero_(block, drop.view(block.shape))
    return energy


def _blocks(columns: int, of: int) -> Iterator[tuple[int, int]]:
    """The whole blocks as one span, then the short rest."""
    whole = columns - columns % of
    if whole:
        yield 0, whole
    if columns % of:
        yield whole, columns % of


def _zero_(values: Tensor, drop: Tensor) -> float:
    energy = float(values[drop].to(torch.float32).square().sum(dtype=torch.float64))
    values.masked_fill_(drop, 0)
    return energy


def _magnitude_bits(values: Tensor) -> Tensor:
    """The bits of |values|: for IEEE floats they order like the magnitudes, exactly."""
    if values.dtype == torch.float32:
        return values.abs().view(torch.int32)
    return values.abs().view(torch.int16)


def _kth_magnitude(flat: Tensor, count: int) -> tuple[int, int]:
    """Bits of the `count`-th smallest magnitude, and how many of that magnitude are among them.

    A radix select by 16-bit digits: two passes at most, whatever the size.
    """
    prefix, shift = 0, 0 if flat.element_size() == 2 else _DIGIT_BITS
    while True:
        histogram = torch.zeros(1 << _DIGIT_BITS, dtype=torch.int64)
        for chunk in flat.split(_CHUNK_ELEMENTS):
            bits = _magnitude_bits(chunk).to(torch.int64)
            if shift < 8 * flat.element_size() - _DIGIT_BITS:
                bits = bits[bits >> (shift + _DIGIT_BITS) == prefix]
            digits = (bits >> shift) & ((1 << _DIGIT_BITS) - 1)
            histogram += torch.bincount(digits, minlength=1 << _DIGIT_BITS)
        totals = histogram.cumsum(0)
        digit = int(torch.searchsorted(totals, count))
        count -= int(totals[digit] - histogram[digit])
        prefix = (prefix << _DIGIT_BITS) | digit
        if shift == 0:
            return prefix, count
        shift = 0
