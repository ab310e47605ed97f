"""From adjusted logits to a draw: temperature, min-p, top-k, top-p, one uniform number a row.

Every operation works row by row, so that a row's token does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.runtime.engine.types import SamplingParams

# Most likely tokens looked at before the whole row is sorted. A constant, because what is computed
# for a row must not depend on its neighbours; sorting 4096 logits takes ten times as long.
_CANDIDATES = 256
# Requests carry doubles; what float32 rounds to 0 or infinity would make NaN of a whole row.
_FLOAT32 = torch.finfo(torch.float32)


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row is drawn from."""

    sampling: SamplingParams
    uniform: float


def draw(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token for each row.

    The order is that of the field: temperature, then min-p (relative to the most likely token),
    then top-k (exactly k, ties by lower id), then top-p (the fewest tokens, best first, that reach
    the mass, of what top-k left). The draw inverts the cumulative distribution of what is left, in
    the order of token ids, which needs no sorting where there are no filters, and none on a GPU.

    Args:
        logits: float32 [n, vocab_size], finite maximum in every row; overwritten.
        draws: one a row, with a temperature above 0.
    """
    device = logits.device
    logits -= logits.amax(-1, keepdim=True)
    # A tiny temperature may overflow to -inf, which is what it means; the maximum stays 0.
    temperatures = [min(max(d.sampling.temperature, _FLOAT32.tiny), _FLOAT32.max) for d in draws]
    logits /= torch.tensor(temperatures, device=device)[:, None]
    if any(d.sampling.min_p > 0.0 for d in draws):
        min_p = torch.tensor([d.sampling.min_p for d in draws], device=device)
        logits.masked_fill_(logits < min_p.log()[:, None], float("-inf"))
    plain = [i for i, d in enumerate(draws) if not _ranked(d.sampling)]
    ranked = [i for i, d in enumerate(draws) if _ranked(d.sampling)]
    tokens = [0] * len(draws)
    if plain:
        probabilities = _rows(logits, plain).softmax(-1)
        for i, token in zip(plain, _invert(probabilities, [draws[i] for i in plain]), strict=True):
            tokens[i] = token
    if ranked:
        chosen = _draw_ranked(_rows(logits, ranked), [draws[i] for i in ranked])
        for i, token in zip(ranked, chosen, strict=True):
            tokens[i] = token
    return tokens


def _ranked(sampling: SamplingParams) -> bool:
    """Whether the filters need the row's order."""
    return sampling.top_k > 0 or sampling.top_p < 1.0


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == logits.shape[0] else logits[rows]


def _draw_ranked(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draws from rows with top-k or top-p, sorting as little of them as their filters need."""
    vocab = logits.shape[1]
    if vocab <= _CANDIDATES:
        return _draw_sorted(logits.sort(dim=-1, descending=True, stable=True), draws, None)
    best, ids = _best(logits)
    mass = (best.logsumexp(-1) - logits.logsumexp(-1)).exp().tolist()
    tokens = [0] * len(draws)
    few = [i for i, d in enumerate(draws) if _fits(d.sampling, mass[i])]
    many = [i for i, d in enumerate(draws) if not _fits(d.sampling, mass[i])]
    if few:
        masses = [1.0 if draws[i].sampling.top_k else mass[i] for i in few]
        chosen = _draw_sorted((best[few], ids[few]), [draws[i] for i in few], masses)
        for i, token in zip(few, chosen, strict=True):
            tokens[i] = token
    if many:
        ordered = logits[many].sort(dim=-1, descending=True, stable=True)
        chosen = _draw_sorted(ordered, [draws[i] for i in many], None)
        for i, token in zip(many, chosen, strict=True):
            tokens[i] = token
    return tokens


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest `_CANDIDATES` of each row in the order of a stable sort."""
    _, ids = logits.topk(_CANDIDATES, dim=-1, sorted=False)
    ids = ids.sort(-1).values  # ascending, so that the stable sort breaks ties by lower id
    best, order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return best, ids.gather(-1, order)


def _fits(sampling: SamplingParams, mass: float) -> bool:
    """Whether the candidates hold all that the filters leave."""
    if 0 < sampling.top_k <= _CANDIDATES:
        return True
    # Without top-k the nucleus is measured against the whole row's mass. A hair of slack keeps a
    # rounded mass from cutting the last token off.
    return sampling.top_k == 0 and mass > sampling.top_p + 1e-4


def _draw_sorted(
    ordered: tuple[Tensor, Tensor], draws: Sequence[Draw], masses: Sequence[float] | None
) -> list[int]:
    """Draws from rows of logits in descending order, given with the token ids they belong to.

    `masses`: the share of the row's probability that its logits stand for; None is all of it.
    """
    logits, ids = ordered
    device = logits.device
    limits = torch.tensor([d.sampling.top_k or logits.shape[1] for d in draws], device=device)
    beyond = torch.arange(logits.shape[1], device=device) >= limits[:, None]
    probabilities = logits.masked_fill(beyond, float("-inf")).softmax(-1)
    shares = masses or [1.0] * len(draws)
    top_p = [
        [max(d.sampling.top_p / share, _FLOAT32.tiny)]  # above 0: the best token always stays
        for d, share in zip(draws, shares, strict=True)
    ]
    before = probabilities.cumsum(-1) - probabilities
    cut = before >= torch.tensor(top_p, device=device)
    ids, by_id = ids.sort(-1)
    kept = probabilities.masked_fill(cut, 0.0).gather(-1, by_id)
    index = torch.tensor(_invert(kept, draws), device=device)
    chosen: list[int] = ids.gather(-1, index[:, None])[:, 0].tolist()
    return chosen


def _invert(probabilities: Tensor, draws: Sequence[Draw]) -> list[int]:
    """The first index of each row whose cumulative probability exceeds its draw."""
    cumulative = probabilities.cumsum(-1)
    # `uniform` has 24 bits, so its product with the total is below the total even when rounded.
    uniforms = torch.tensor([[d.uniform] for d in draws], device=probabilities.device)
    indices: list[int] = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)[
        :, 0
    ].tolist()
    return indices
