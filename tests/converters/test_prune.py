"""Pruning: exact counts, the least magnitudes go, ties fall the same way every time."""

from __future__ import annotations

import pytest
import torch

from tersor.converters.prune import prune_magnitude_, prune_pattern_

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (63, 129), (4, 3, 5)])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9, 0.999])
def test_magnitude_zeroes_exactly_the_share_of_least_magnitude(
    dtype: torch.dtype, shape: tuple[int, ...], fraction: float
) -> None:
    before = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    before[before == 0] = 1  # so that the zeros counted below are ours
    after = before.clone()
    energy = prune_magnitude_(after, fraction)
    dropped = after == 0
    assert int(dropped.sum()) == round(fraction * before.numel())
    assert torch.equal(after[~dropped], before[~dropped])
    if dropped.any() and not dropped.all():
        assert before[dropped].abs().max() <= before[~dropped].abs().min()
    expected = float(before[dropped].double().square().sum())
    assert energy == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_fall_in_row_major_order(dtype: torch.dtype) -> None:
    w = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]], dtype=dtype)
    prune_magnitude_(w, 0.5)
    assert w.tolist() == [[0, 0, 0], [-1, 1, -1]]


def test_magnitude_agrees_with_a_sort_on_many_exponents() -> None:
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(4099, generator=generator) * torch.logspace(-30, 30, 4099)
    expected = w.clone()
    expected[w.abs().argsort(stable=True)[: round(0.37 * 4099)]] = 0
    prune_magnitude_(w, 0.37)
    assert torch.equal(w, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 2), (4, 8), (3, 5)])
@pytest.mark.parametrize("columns", [4, 40, 129])
def test_pattern_keeps_the_largest_of_every_block(
    dtype: torch.dtype, keep: int, of: int, columns: int
) -> None:
    before = torch.randn((7, columns), generator=torch.Generator().manual_seed(2)).to(dtype) + 5
    after = before.clone()
    energy = prune_pattern_(after, keep, of)
    for block, original in zip(after.split(of, 1), before.split(of, 1), strict=True):
        kept = min(keep, block.shape[1])
        assert ((block != 0).sum(1) == kept).all()
        least_kept = torch.where(block != 0, original.float(), float("inf")).amin(1)
        assert (original.float() * (block == 0) <= least_kept[:, None]).all()
    lost = float((before - after).double().square().sum())
    assert energy == pytest.approx(lost, rel=1e-5)
