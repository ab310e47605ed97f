"""The fused decoder operators on a CUDA device."""

from __future__ import annotations

import pytest
import torch
from fusion_cases import EPS, Tolerance, heads, moved, random
from poison import poisoned_memory
from torch import Tensor

from tersor.kernels.norm import add_rms_norm, rms_norm_rows
from tersor.kernels.norm import reference as norm_reference
from tersor.kernels.rotary import rotate_store
from tersor.kernels.rotary.quantize import quantize_kv
from tersor.kernels.rotary.reference import split_heads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda", 0)
# The kernels round once, perhaps to the other side: an ulp of bf16 is 2^-7 of a number just above a
# power of two.
TOLERANCES = {
    torch.float32: Tolerance(rtol=2e-5, atol=2e-5),
    torch.bfloat16: Tolerance(rtol=2 * 2**-8, atol=2**-8),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def _partials(splits: int, tokens: int, width: int, dtype: torch.dtype) -> Tensor | None:
    parts = torch.float32 if splits > 1 else dtype
    return random(splits, tokens, width, seed=3, dtype=parts).to(GPU) if splits else None


@DTYPES
@pytest.mark.parametrize("splits", [0, 1, 2, 8])
@pytest.mark.parametrize("width", [1, 7, 129, 4096, 8192, 8200, 16384])
def test_add_rms_norm(width: int, splits: int, dtype: torch.dtype) -> None:
    gain = random(width, seed=2).to(GPU)
    for tokens in (1, 2, 16, 33):
        residual = random(tokens, width, seed=1, dtype=dtype).to(GPU)
        partials = _partials(splits, tokens, width, dtype)
        sums = norm_reference.added(residual, partials)
        rows = torch.tensor([tokens - 1, 0, 0], device=GPU)
        before = residual.clone()
        with poisoned_memory():
            chosen = rms_norm_rows(residual, partials, rows, gain, EPS)
            assert torch.equal(residual, before)
            out = add_rms_norm(residual, partials, gain, EPS)
        TOLERANCES[dtype].check(residual, sums)
        # Of the kernel's residual: one that rounds to the other side may move its norm two ulps.
        expected = norm_reference.rms_norm(residual, gain, EPS)
        TOLERANCES[dtype].check(out, expected)
        assert torch.equal(chosen, out[rows])


@pytest.mark.parametrize("width", [4096, 8200])
def test_a_norm_does_not_depend_on_the_batch(width: int) -> None:
    partials, gain = random(4, 33, width, seed=1).to(GPU), random(width, seed=2).to(GPU)
    residual = random(33, width, seed=3, dtype=torch.bfloat16).to(GPU)
    parts = [(residual[i : i + 1].clone(), partials[:, i : i + 1].contiguous()) for i in (0, 7, 32)]
    whole = add_rms_norm(residual, partials, gain, EPS)
    for row, (alone, added) in zip((0, 7, 32), parts, strict=True):
        assert torch.equal(add_rms_norm(alone, added, gain, EPS), whole[row : row + 1])


@DTYPES
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize(
    ("num_heads", "kv_heads", "head_dim"), [(1, 1, 2), (6, 2, 12), (32, 8, 128), (16, 16, 256)]
)
def test_rotate_store(
    num_heads: int, kv_heads: int, head_dim: int, splits: int, norm: bool, dtype: torch.dtype
) -> None:
    for tokens in (1, 5, 64):
        case = heads(tokens, num_heads, kv_heads, head_dim, splits=splits, norm=norm, dtype=dtype)
        case = moved(case, GPU)
        cache = torch.full((10, 16, 2, kv_heads, head_dim), 9.0, dtype=dtype, device=GPU)
        slots = torch.randperm(160, generator=torch.Generator().manual_seed(4))[:tokens].to(GPU)
        with poisoned_memory():
            q = rotate_store(case, slots, cache)
        flat, want = cache.flatten(0, 1), split_heads(case)
        for got, expected in ((q, want.q), (flat[slots, 0], want.k), (flat[slots, 1], want.v)):
            TOLERANCES[dtype].check(got.float(), expected)
        untouched = torch.ones(160, dtype=torch.bool, device=GPU).index_fill_(0, slots, False)
        assert bool((flat[untouched] == 9.0).all())


def test_rotate_store_in_int8() -> None:
    case = moved(heads(33, 32, 8, 128, splits=4), GPU)
    cache = torch.zeros(4, 16, 2, 8, 128, dtype=torch.int8, device=GPU)
    scales = torch.zeros(4, 16, 2, 8, device=GPU)
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(4))[:33].to(GPU)
    with poisoned_memory():
        rotate_store(case, slots, cache, scales)
    for part, values in enumerate(split_heads(case)[1:]):
        codes, want = quantize_kv(values)
        torch.testing.assert_close(scales.flatten(0, 1)[slots, part], want, rtol=1e-5, atol=0.0)
        # A float32 sum in another order may round to the next code.
        difference = cache.flatten(0, 1)[slots, part].int() - codes.int()
        assert int(difference.abs().max()) <= 1
        assert bool((difference == 0).float().mean() > 0.99)


def test_fusions_are_captured_by_a_cuda_graph() -> None:
    case = moved(heads(4, 8, 2, 64, splits=4, norm=True, dtype=torch.bfloat16), GPU)
    residual = random(4, 256, seed=1, dtype=torch.bfloat16).to(GPU)
    partials, gain = random(4, 4, 256, seed=2).to(GPU), random(256, seed=3).to(GPU)
    cache = torch.zeros(2, 16, 2, 2, 64, dtype=torch.bfloat16, device=GPU)
    slots = torch.tensor([3, 9, 30, 0], device=GPU)
    start = residual.clone()
    expected = (add_rms_norm(residual, partials, gain, EPS), rotate_store(case, slots, cache))
    stored = cache.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = (add_rms_norm(residual, partials, gain, EPS), rotate_store(case, slots, cache))
    residual.copy_(start)
    cache.zero_()
    graph.replay()
    for got, want in zip((*captured, cache), (*expected, stored), strict=True):
        assert torch.equal(got, want)
