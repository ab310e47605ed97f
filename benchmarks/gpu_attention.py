"""Claim: attention at decode reads its cache at the bandwidth of a GPU's memory, and what stands
between products takes a few microseconds.

Heads and widths of Llama-3-8B. Attention over a paged cache stands beside torch's SDPA over a
contiguous one, which flatters SDPA; the fused operators beside the torch operators that they
replace. All of it is replayed from a CUDA graph, and a cache is never in L2: every launch reads
another one. Needs torch and triton alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import record
import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.attention import AttentionPlan, Span, quantize_kv
from tersor.kernels.bench.timing import COLD_BYTES, copy_bandwidth, graph_seconds
from tersor.kernels.gated import gated
from tersor.kernels.gated import reference as gated_reference
from tersor.kernels.norm import add_rms_norm
from tersor.kernels.norm import reference as norm_reference
from tersor.kernels.rotary import Heads, Rotation, rotate_store
from tersor.kernels.rotary.reference import split_heads
from tersor.kernels.sampling import sample_rows

NUM_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
HIDDEN, INTERMEDIATE, VOCAB = 4096, 14336, 128256
PAGE_TOKENS = 16
SPLITS = 4  # partials of a product
CONTEXTS = (1024, 2048, 8192)
SEQUENCES = (1, 8, 32)
CHUNKS = (256, 2048)  # tokens of a prompt
TOKENS = (1, 8, 64)
EPS = 1e-5
REPEAT = 20  # launches of a small operator in a graph, whose start then does not count

Row = dict[str, object]
Operator = Callable[[], object]


def attention_rows(
    device: torch.device, bandwidth: float, sequences: int, context: int
) -> list[Row]:
    """One token of each sequence attends to `context` tokens: bf16, int8, and SDPA."""
    q = torch.randn(sequences, NUM_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    count = context // PAGE_TOKENS
    pages = torch.randperm(sequences * count).split(count)
    spans = [Span(pages=each.tolist(), queries=1, context=context) for each in pages]
    plan = AttentionPlan(spans, page_tokens=PAGE_TOKENS, device=device)
    attend = partial(plan.attend, q, scale=HEAD_DIM**-0.5, window=None)
    shape = (sequences * count, PAGE_TOKENS, 2, KV_HEADS, HEAD_DIM)
    name, read = f"attention {context}", 2 * q[:, :KV_HEADS].numel() * context
    row = partial(attention_row, name, sequences, bandwidth=bandwidth)

    cold = cold_caches(lambda: torch.randn(shape, dtype=torch.bfloat16, device=device))
    rows = [row("tersor bf16", over(cold, attend), len(cold), 2 * read)]
    coded = cold_caches(lambda: torch.randint(-127, 128, shape, dtype=torch.int8, device=device))
    scales = quantize_kv(cold[0])[1]
    launches = over(coded, partial(attend, kv_scales=scales))
    rows.append(row("tersor int8", launches, len(coded), read + scales.nbytes))
    # The same bytes, as SDPA wants them.
    pairs = [cache.view(2, sequences, KV_HEADS, context, HEAD_DIM) for cache in cold]
    query = q[:, :, None]
    launches = over(pairs, partial(sdpa, query))
    return [*rows, row("torch SDPA bf16", launches, len(pairs), 2 * read)]


def prefill_rows(device: torch.device, chunk: int) -> list[Row]:
    """A prompt of `chunk` tokens attends to itself; its cache may be in L2, where it is written."""
    q = torch.randn(chunk, NUM_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    count = chunk // PAGE_TOKENS
    shape = (count, PAGE_TOKENS, 2, KV_HEADS, HEAD_DIM)
    cache = torch.randn(shape, dtype=torch.bfloat16, device=device)
    spans = [Span(pages=torch.randperm(count).tolist(), queries=chunk, context=chunk)]
    plan = AttentionPlan(spans, page_tokens=PAGE_TOKENS, device=device)
    query = q.transpose(0, 1)[None]
    k, v = cache.view(2, 1, KV_HEADS, chunk, HEAD_DIM)
    ways: dict[str, Operator] = {
        "tersor bf16": partial(plan.attend, q, cache, scale=HEAD_DIM**-0.5, window=None),
        "torch SDPA bf16": partial(
            F.scaled_dot_product_attention, query, k, v, is_causal=True, enable_gqa=True
        ),
    }
    rows = []
    for form, attend in ways.items():
        seconds = graph_seconds(partial(repeated, attend)) / REPEAT
        rows.append(shown("prefill", form, chunk, seconds, None))
    return rows


def over(caches: Sequence[Tensor], attend: Callable[[Tensor], object]) -> Operator:
    """Attends to each of them in turn."""
    return lambda: [attend(cache) for cache in caches]


def cold_caches(make: Callable[[], Tensor]) -> Sequence[Tensor]:
    """Enough of them that one pass evicts any L2 cache."""
    first = make()
    return [first, *(make() for _ in range(COLD_BYTES // first.nbytes))]


def sdpa(q: Tensor, kv: Tensor) -> Tensor:
    k, v = kv
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def attention_row(
    name: str, sequences: int, form: str, launches: Operator, count: int, read: int,
    *, bandwidth: float,
) -> Row:  # fmt: skip
    seconds = graph_seconds(launches) / count
    return shown(name, form, sequences, seconds, read / seconds / bandwidth)


def operator_rows(device: torch.device, tokens: int) -> Iterator[list[Row]]:
    """The operators between products for so many tokens, beside what they replace."""
    for name, (ours, torch_s) in {
        "add and norm": norms(device, tokens),
        "rotate and store": rotations(device, tokens),
        "gated": gates(device, tokens),
        "sample": samplers(device, tokens),
    }.items():
        rows = []
        for form, operator in (("tersor", ours), ("torch", torch_s)):
            launches = partial(repeated, operator)
            rows.append(shown(name, form, tokens, graph_seconds(launches) / REPEAT, None))
        yield rows


def repeated(operator: Operator) -> None:
    for _ in range(REPEAT):
        operator()


def norms(device: torch.device, tokens: int) -> tuple[Operator, Operator]:
    residual = torch.randn(tokens, HIDDEN, dtype=torch.bfloat16, device=device)
    partials = 1e-3 * torch.randn(SPLITS, tokens, HIDDEN, device=device)
    gain = torch.ones(HIDDEN, dtype=torch.bfloat16, device=device)

    def plain() -> Tensor:
        sums = norm_reference.added(residual, partials)
        return F.rms_norm(sums, (HIDDEN,), gain, EPS)

    return lambda: add_rms_norm(residual, partials, gain, EPS), plain


def rotations(device: torch.device, tokens: int) -> tuple[Operator, Operator]:
    width = (NUM_HEADS + 2 * KV_HEADS) * HEAD_DIM
    angles = torch.randn(2, tokens, 1, HEAD_DIM, dtype=torch.bfloat16, device=device)
    heads = Heads(
        qkv=torch.randn(SPLITS, tokens, width, device=device),
        num_heads=NUM_HEADS,
        num_kv_heads=KV_HEADS,
        rotation=Rotation(angles[0], angles[1]),
        q_gain=None,
        k_gain=None,
        eps=EPS,
    )
    shape = (tokens, PAGE_TOKENS, 2, KV_HEADS, HEAD_DIM)
    cache = torch.zeros(shape, dtype=torch.bfloat16, device=device)
    slots = PAGE_TOKENS * torch.arange(tokens, device=device)

    def plain() -> Tensor:
        q, k, v = split_heads(heads)
        stored = torch.stack((k, v), dim=1).to(cache.dtype)
        cache.flatten(0, 1).index_copy_(0, slots, stored)
        return q.to(cache.dtype)

    return lambda: rotate_store(heads, slots, cache), plain


def gates(device: torch.device, tokens: int) -> tuple[Operator, Operator]:
    y = torch.randn(tokens, 2 * INTERMEDIATE, dtype=torch.bfloat16, device=device)
    return lambda: gated(y, "silu"), lambda: gated_reference.gated(y, "silu")


def samplers(device: torch.device, tokens: int) -> tuple[Operator, Operator]:
    """Temperature 0.8, top-k 50 and top-p 0.9 for every row."""
    logits = 2.5 * torch.randn(tokens, VOCAB, device=device)
    uniform = torch.rand(tokens, device=device)
    temperature, top_p = torch.full_like(uniform, 0.8), torch.full_like(uniform, 0.9)
    top_k = torch.full((tokens,), 50, dtype=torch.int32, device=device)
    min_p = torch.zeros_like(uniform)

    def plain() -> Tensor:
        # Of as many tokens as top-k leaves: torch's fastest way where k is the same for all rows.
        kept, ids = (logits / temperature[:, None]).topk(50)
        weights = kept.softmax(-1)
        total = weights.cumsum(-1)
        weights = weights * (total - weights < top_p[:, None])
        total = weights.cumsum(-1)
        place = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)
        return ids.gather(1, place.clamp_max(49))

    return lambda: sample_rows(logits, temperature, top_k, top_p, min_p, uniform), plain


def shown(name: str, form: str, batch: int, seconds: float, share: float | None) -> Row:
    of = "" if share is None else f"{100 * share:6.1f} % of the copy bandwidth"
    print(f"  {name:<17} {form:<16} M={batch:<4} {1e6 * seconds:8.2f} us {of}", flush=True)
    return {
        "operator": name,
        "form": form,
        "batch": batch,
        "microseconds": round(1e6 * seconds, 3),
        "share_of_copy_bandwidth": "" if share is None else round(share, 4),
    }


def measured(device: torch.device) -> Iterator[list[Row]]:
    bandwidth = copy_bandwidth(device)
    print(f"copy bandwidth {bandwidth / 1e9:.0f} GB/s")
    for context in CONTEXTS:
        for sequences in SEQUENCES:
            yield attention_rows(device, bandwidth, sequences, context)
    for chunk in CHUNKS:
        yield prefill_rows(device, chunk)
    for tokens in TOKENS:
        yield from operator_rows(device, tokens)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_attention.py needs a CUDA device; torch sees none", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.inference_mode():
        path = record.write_groups("gpu_attention", measured(device), packages=("triton",))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
