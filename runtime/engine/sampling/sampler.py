"""The next token of every sequence of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.runtime.engine.sampling import fused
from tersor.runtime.engine.sampling.filters import Draw, draw
from tersor.runtime.engine.sampling.logprobs import token_logprobs
from tersor.runtime.engine.sampling.state import SamplerState
from tersor.runtime.engine.types import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class SampleFailure:
    """A row from which nothing can be chosen."""

    message: str


@torch.inference_mode()
def sample(logits: Tensor, states: Sequence[SamplerState]) -> list[Sampled | SampleFailure]:
    """Chooses and records one token for each row; a row's choice does not depend on the others.

    Args:
        logits: float32 [len(states), vocab_size], as the model gave them; not changed.
        states: one a row.

    Returns:
        One outcome a row; a row with NaN or without a finite maximum fails alone.
    """
    if logits.device.type == "cpu":
        tokens, failed = _choose(logits, states)
    else:
        tokens = fused.choose(logits, states)
        failed = [token < 0 for token in tokens]
    wanted = [
        row
        for row, state in enumerate(states)
        if not failed[row] and state.sampling.logprobs is not None
    ]
    reports: dict[int, TokenLogprobs] = {}
    if wanted:
        tops = [states[row].sampling.logprobs or 0 for row in wanted]
        found = token_logprobs(logits[wanted], [tokens[row] for row in wanted], tops)
        reports = dict(zip(wanted, found, strict=True))
    outcomes: list[Sampled | SampleFailure] = []
    for row, state in enumerate(states):
        if failed[row]:
            outcomes.append(SampleFailure("the model's logits have no finite maximum"))
            continue
        state.record(tokens[row])
        outcomes.append(Sampled(tokens[row], reports.get(row)))
    return outcomes


def _choose(logits: Tensor, states: Sequence[SamplerState]) -> tuple[list[int], list[bool]]:
    """The token of each row, and whether nothing could be chosen."""
    best, ids = logits.max(-1)
    tokens: list[int] = ids.tolist()
    failed: list[bool] = best.isfinite().logical_not().tolist()
    special = [row for row, state in enumerate(states) if not state.plain and not failed[row]]
    if special:
        _choose_special(logits, states, special, tokens, failed)
    return tokens, failed


def _choose_special(
    logits: Tensor,
    states: Sequence[SamplerState],
    rows: Sequence[int],
    tokens: list[int],
    failed: list[bool],
) -> None:
    """Writes the tokens of those `rows` that are not simply the most likely ones."""
    random: list[tuple[int, Tensor]] = []
    for row in rows:
        adjusted = states[row].adjust(logits[row])
        if not bool(adjusted.max().isfinite()):  # everything forbidden, or a penalty overflowed
            failed[row] = True
        elif states[row].sampling.temperature > 0.0:
            random.append((row, adjusted))
        else:
            tokens[row] = int(adjusted.argmax())
    if random:
        draws = [Draw(states[row].sampling, states[row].uniform()) for row, _ in random]
        chosen = draw(torch.stack([adjusted for _, adjusted in random]), draws)
        for (row, _), token in zip(random, chosen, strict=True):
            tokens[row] = token
