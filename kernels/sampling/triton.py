"""Triton kernel that samples: one program a row, and no sort.

A token at x = (logit - maximum) / temperature <= 0 weighs exp(x). The bits of -x, read as an
integer, are its *key*: they ascend as the weight falls, so "the likeliest first" is ascending keys.
What a filter keeps is a *cut*: all tokens whose key is below it, and some of those at it, by lower
id. A cut is found four bits at a time, in eight passes; they run over a list of candidates, which
three passes over the row make: its maximum, how the weight is spread, and the listing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.kernels.checks import check_tensor
from tersor.kernels.gemv.triton import check_device

# Tokens that a program holds at a time, and as many as do not spill with sixteen buckets for each.
ROW_BLOCK = 4096
BUCKET_BLOCK = 1024
NUM_WARPS = 16
STAGES = tl.constexpr(2)  # blocks of a row that are under way from memory
DROPPED = tl.constexpr(0x7F800000)  # key of -inf: a token that is never drawn
NO_TOKEN = tl.constexpr(0x7FFFFFFF)
# Candidates end at one of the keys of 0.375, 0.5, 0.75, … 32, in half octaves, or nowhere.
FIRST_LIMIT = tl.constexpr(0x3E800000)
LIMIT_SHIFT = tl.constexpr(22)
# Share of the weight that candidates hold beyond the nucleus, so that rounding cannot cut into it.
SLACK = tl.constexpr(1e-4)


@triton.jit
def find_best(row_ptr, vocab, BLOCK: tl.constexpr):
    """Maximum of a row, lowest id of a token that has it, and how many lanes saw a NaN."""
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    token = tl.zeros((BLOCK,), dtype=tl.int32)
    nans = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in tl.range(0, vocab, BLOCK, num_stages=STAGES):
        index = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + index, mask=index < vocab, other=float("-inf"))
        better = x > best  # not where it is the same: a lane keeps its lowest id
        token = tl.where(better, index, token)
        best = tl.where(better, x, best)
        nans |= (x != x).to(tl.int32)
    top = tl.max(best, axis=0)
    lowest = tl.min(tl.where(best == top, token, NO_TOKEN), axis=0)
    return top, lowest, tl.sum(nans, axis=0)


@triton.jit
def load_tokens(
    row_ptr, ids_ptr, start, count, best, temperature, floor,
    LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Ids, keys and weights of BLOCK tokens from `start` on: of the row, or of the ids LISTED."""
    token = start + tl.arange(0, BLOCK)
    inside = token < count
    if LISTED:
        token = tl.load(ids_ptr + token, mask=inside, other=0)
    x = tl.load(row_ptr + token, mask=inside, other=float("-inf"))
    x = (x - best) / temperature
    x = tl.where(x < floor, float("-inf"), x)
    return token, tl.abs(x).to(tl.int32, bitcast=True), tl.exp(x)


@triton.jit
def weigh(
    row_ptr, ids_ptr, count, best, temperature, floor,  # as in `load_tokens`
    low, shift, by_count, cut, share, LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What keys below `low` weigh, and those of each of sixteen buckets of 2^shift from there on.

    Tokens weigh 1 `by_count`; those at `cut` only their `share`, and those beyond it nothing. Of a
    whole row, not LISTED, the outer buckets hold what lies beyond them too, and nothing is below.
    """
    bucket_lane = tl.arange(0, 16)
    below = tl.zeros((BLOCK,), dtype=tl.float32)
    buckets = tl.zeros((BLOCK, 16), dtype=tl.float32)
    for start in tl.range(0, count, BLOCK, num_stages=1 if LISTED else STAGES):
        _, key, weight = load_tokens(
            row_ptr, ids_ptr, start, count, best, temperature, floor, LISTED, BLOCK
        )
        weight = tl.where(by_count, (key < DROPPED).to(tl.float32), weight)
        weight *= tl.where(key < cut, 1.0, tl.where(key == cut, share, 0.0))
        bucket = (key - low) >> shift
        if LISTED:
            below += tl.where(key < low, weight, 0.0)
        else:
            bucket = tl.minimum(tl.maximum(bucket, 0), 15)
        buckets += tl.where(bucket[:, None] == bucket_lane[None, :], weight[:, None], 0.0)
    return tl.sum(below, axis=0), tl.sum(buckets, axis=0)


@triton.jit
def find_cut(
    row_ptr, ids_ptr, count, best, temperature, floor,  # as in `load_tokens`
    target, by_count, cut, share, BLOCK: tl.constexpr,  # as in `weigh`
):  # fmt: skip
    """The key at which the listed weight reaches `target`, the weight below it, and that at it.

    The last key that a token has, if rounding keeps the target out of reach.
    """
    lane = tl.arange(0, 16)
    low = tl.min(lane, axis=0)  # 0, as a tensor
    before = target * 0.0
    at = target * 0.0
    for level in range(8):
        shift = 28 - 4 * level
        below, buckets = weigh(
            row_ptr, ids_ptr, count, best, temperature, floor,
            low, shift, by_count, cut, share, True, BLOCK,
        )  # fmt: skip
        sums = below + tl.cumsum(buckets, axis=0)
        bucket = tl.sum((sums < target).to(tl.int32), axis=0)
        bucket = tl.minimum(bucket, tl.max(tl.where(buckets > 0.0, lane, 0), axis=0))
        before = below + tl.sum(tl.where(lane < bucket, buckets, 0.0), axis=0)
        at = tl.sum(tl.where(lane == bucket, buckets, 0.0), axis=0)
        low += bucket << shift
    return low, before, at


@triton.jit
def list_candidates(
    row_ptr, ids_ptr, vocab, best, temperature, floor, top_k, top_p,
    ROW_BLOCK: tl.constexpr, BUCKET_BLOCK: tl.constexpr,
):  # fmt: skip
    """Lists, ascending, the ids that top-k and top-p may keep: how many, and all tokens' weight."""
    by_count = top_k > 0
    _below, buckets = weigh(
        row_ptr, ids_ptr, vocab, best, temperature, floor,
        FIRST_LIMIT, LIMIT_SHIFT, by_count, DROPPED, 0.0, False, BUCKET_BLOCK,
    )  # fmt: skip
    total = tl.sum(buckets, axis=0)
    target = tl.where(by_count, top_k.to(tl.float32), (top_p + SLACK) * total)
    bucket = tl.sum((tl.cumsum(buckets, axis=0) < target).to(tl.int32), axis=0)
    limit = tl.where(bucket < 15, FIRST_LIMIT + ((bucket + 1) << LIMIT_SHIFT), DROPPED)
    count = bucket * 0
    for start in range(0, vocab, ROW_BLOCK):
        token, key, _ = load_tokens(
            row_ptr, ids_ptr, start, vocab, best, temperature, floor, False, ROW_BLOCK
        )
        chosen = key < limit
        place = count + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        tl.store(ids_ptr + place, token, mask=chosen)
        count += tl.sum(chosen.to(tl.int32), axis=0)
    tl.debug_barrier()  # other lanes read the list
    return count, total


@triton.jit
def weight_before(
    row_ptr, ids_ptr, count, best, temperature, floor, cut, ties,
    LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The weight of what a cut keeps: keys below it, and `ties` tokens at it."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, count, BLOCK):
        _, key, weight = load_tokens(
            row_ptr, ids_ptr, start, count, best, temperature, floor, LISTED, BLOCK
        )
        total += tl.where(key < cut, weight, 0.0)
    return tl.sum(total, axis=0) + ties * tl.exp(-cut.to(tl.float32, bitcast=True))


@triton.jit
def invert(
    row_ptr, ids_ptr, count, best, temperature, floor, cut, ties, uniform,
    LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first token, by id, at which the share of what a cut keeps exceeds `uniform`."""
    target = uniform * weight_before(
        row_ptr, ids_ptr, count, best, temperature, floor, cut, ties, LISTED, BLOCK
    )
    base = target * 0.0
    tied = ties * 0.0
    chosen = count * 0 + NO_TOKEN
    last = count * 0
    for start in range(0, count, BLOCK):
        token, key, weight = load_tokens(
            row_ptr, ids_ptr, start, count, best, temperature, floor, LISTED, BLOCK
        )
        tie = (key == cut).to(tl.float32)
        rank = tied + tl.cumsum(tie, axis=0) - tie
        weight = tl.where((key < cut) | ((key == cut) & (rank < ties)), weight, 0.0)
        sums = base + tl.cumsum(weight, axis=0)
        hit = (weight > 0.0) & (sums > target)
        chosen = tl.minimum(chosen, tl.min(tl.where(hit, token, NO_TOKEN), axis=0))
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, token, 0), axis=0))
        base += tl.sum(weight, axis=0)
        tied += tl.sum(tie, axis=0)
    return tl.where(chosen < NO_TOKEN, chosen, last)  # rounding may hide the last one


@triton.jit
def draw(
    row_ptr, ids_ptr, vocab, best, temperature, top_k, top_p, min_p, uniform,
    ROW_BLOCK: tl.constexpr, BUCKET_BLOCK: tl.constexpr,
):  # fmt: skip
    """A token drawn from what the filters leave of a row."""
    floor = tl.where(min_p > 0.0, tl.log(tl.maximum(min_p, 1e-37)), float("-inf"))
    cut = top_k * 0 + DROPPED
    ties = uniform * 0.0
    if (top_k > 0) | (top_p < 1.0):
        share = ties
        count, total = list_candidates(
            row_ptr, ids_ptr, vocab, best, temperature, floor, top_k, top_p,
            ROW_BLOCK, BUCKET_BLOCK,
        )  # fmt: skip
        if top_k > 0:
            cut, before, at = find_cut(
                row_ptr, ids_ptr, count, best, temperature, floor,
                top_k.to(tl.float32), True, cut, share, BUCKET_BLOCK,
            )  # fmt: skip
            ties = tl.minimum(top_k.to(tl.float32) - before, at)
            share = ties / at
            total = weight_before(
                row_ptr, ids_ptr, count, best, temperature, floor, cut, ties, True, ROW_BLOCK
            )
        if top_p < 1.0:
            target = top_p * total
            key, before, _at = find_cut(
                row_ptr, ids_ptr, count, best, temperature, floor,
                target, False, cut, share, BUCKET_BLOCK,
            )  # fmt: skip
            weight = tl.maximum(tl.exp(-key.to(tl.float32, bitcast=True)), 1e-37)
            needed = tl.maximum(tl.ceil((target - before) / weight), 1.0)
            ties = tl.where(key == cut, tl.minimum(needed, ties), needed)
            cut = key
        token = invert(
            row_ptr, ids_ptr, count, best, temperature, floor, cut, ties, uniform, True, ROW_BLOCK
        )
    else:
        count = top_k * 0 + vocab
        token = invert(
            row_ptr, ids_ptr, count, best, temperature, floor, cut, ties, uniform, False, ROW_BLOCK
        )
    return token


@triton.jit
def sample_rows_kernel(
    logits_ptr,  # float32 [rows, vocab]
    temperature_ptr,  # float32 [rows]; 0 is greedy
    top_k_ptr,  # int32 [rows]; 0 is no limit
    top_p_ptr,  # float32 [rows]
    min_p_ptr,  # float32 [rows]
    uniform_ptr,  # float32 [rows]
    ids_ptr,  # int32 [rows, vocab], to list candidates in
    tokens_ptr,  # out: int64 [rows]
    vocab,
    ROW_BLOCK: tl.constexpr,
    BUCKET_BLOCK: tl.constexpr,
):
    """One token a row, see `ops.sample_rows`."""
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * vocab
    best, token, nans = find_best(row_ptr, vocab, ROW_BLOCK)
    finite = (nans == 0) & (tl.abs(best) < float("inf"))
    token = tl.where(finite, token, -1)
    temperature = tl.load(temperature_ptr + row)
    if finite & (temperature > 0.0):
        token = draw(
            row_ptr,
            ids_ptr + row.to(tl.int64) * vocab,
            vocab,
            best,
            temperature,
            tl.load(top_k_ptr + row),
            tl.load(top_p_ptr + row),
            tl.load(min_p_ptr + row),
            tl.load(uniform_ptr + row),
            ROW_BLOCK,
            BUCKET_BLOCK,
        )
    tl.store(tokens_ptr + row, token.to(tl.int64))


def sample_rows(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """As `ops.sample_rows`, on a GPU (or in Triton's interpreter)."""
    device = logits.device
    check_device(device)
    check_tensor("logits", logits, shape=(None, None), dtypes=(torch.float32,))
    rows, vocab = logits.shape
    for name, values, dtype in (
        ("temperature", temperature, torch.float32),
        ("top_k", top_k, torch.int32),
        ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32),
        ("uniform", uniform, torch.float32),
    ):
        check_tensor(name, values, shape=(rows,), dtypes=(dtype,), device=device)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    if rows:
        ids = torch.empty(rows, vocab, dtype=torch.int32, device=device)
        sample_rows_kernel[(rows,)](
            logits, temperature, top_k, top_p, min_p, uniform, ids, tokens, vocab,
            ROW_BLOCK=ROW_BLOCK, BUCKET_BLOCK=BUCKET_BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    return tokens
