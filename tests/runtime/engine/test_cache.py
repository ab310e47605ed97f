"""The paged cache's sizes and dtypes, and what an int8 cache changes about answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from engine_rig import CPU, SMALL, make_rig, tiny_model, tiny_program
from torch import Tensor

from tersor.kernels.attention import Span
from tersor.models.cache import GrowingCache
from tersor.runtime.engine.cache import PagedCache, resolve_kv_cache_dtype
from tersor.runtime.errors import OutOfMemoryError

PROGRAM = tiny_program()  # two layers, two kv heads of 16
PROMPT = tuple(range(40, 70))


def _cache(dtype: torch.dtype, cache_bytes: int = 1 << 20) -> PagedCache:
    return PagedCache(
        PROGRAM,
        page_tokens=4,
        cache_bytes=cache_bytes,
        max_sequences=2,
        dtype=dtype,
        device=CPU,
    )


@pytest.mark.parametrize(
    ("dtype", "token_bytes"),
    [(torch.float32, 512), (torch.bfloat16, 256), (torch.int8, 2 * 2 * 2 * (16 + 4))],
    ids=str,
)
def test_a_page_takes_what_its_tensors_take(dtype: torch.dtype, token_bytes: int) -> None:
    cache = _cache(dtype)
    tensors = [*cache._layers, *(scales for scales in cache._scales if scales is not None)]
    assert cache.page_bytes == 4 * token_bytes
    assert sum(tensor.nbytes for tensor in tensors) == cache.pool.total * cache.page_bytes
    assert _cache(dtype, cache_bytes=cache.page_bytes).pool.total == 1
    with pytest.raises(OutOfMemoryError, match=f"does not hold one page of {4 * token_bytes} byt"):
        _cache(dtype, cache_bytes=cache.page_bytes - 1)


def test_the_dtype_is_the_activations_unless_chosen() -> None:
    assert resolve_kv_cache_dtype("auto", torch.bfloat16) == torch.bfloat16
    assert resolve_kv_cache_dtype("fp32", torch.bfloat16) == torch.float32
    assert resolve_kv_cache_dtype("bf16", torch.float32) == torch.bfloat16
    assert resolve_kv_cache_dtype("int8", torch.float32) == torch.int8


def _logits(dtype: torch.dtype) -> Tensor:
    """Of a prompt in two chunks and four more tokens, one by one, from dirty pages."""
    model, cache = tiny_model(PROGRAM), _cache(dtype)
    for tensor in (*cache._layers, *cache._scales):
        if tensor is not None:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 113)
    table = cache.allocate(34)
    assert table is not None
    rows = []
    for start, stop in ((0, 17), (17, 30), (30, 31), (31, 32), (32, 33), (33, 34)):
        tokens = torch.tensor([(7 * index) % 90 + 33 for index in range(start, stop)])
        span = Span(pages=table.pages, queries=stop - start, context=stop, contiguous=True)
        rows.append(model.forward(tokens, torch.arange(start, stop), cache.attention([span])))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    # Mean KL divergence in nats over 34 tokens of random weights, whose logits reach 8:
    # measured 1.0e-4 (bf16) and 4e-4 (int8).
    [(torch.bfloat16, 1e-3), (torch.int8, 2e-3)],
    ids=str,
)
def test_a_narrow_cache_hardly_moves_the_logits(dtype: torch.dtype, bound: float) -> None:
    exact, narrow = _logits(torch.float32), _logits(dtype)
    divergence = torch.nn.functional.kl_div(
        narrow.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert 0 < divergence < bound


def test_an_int8_cache_answers_and_does_not_depend_on_neighbours() -> None:
    config = replace(SMALL, kv_cache_dtype="int8")
    alone = make_rig(config=config).answer(PROMPT, max_tokens=20, ignore_eos=True).token_ids
    rig = make_rig(config=config)
    sinks = [rig.submit(PROMPT[cut:], max_tokens=20, ignore_eos=True)[1] for cut in (0, 3, 11)]
    rig.run()
    assert sinks[0].token_ids == alone
    model, cache = tiny_model(PROGRAM), GrowingCache()
    logits = model.forward(torch.tensor(PROMPT), torch.arange(len(PROMPT)), cache)
    assert alone[0] == int(logits[-1].argmax())
