"""Log-probabilities under the raw model: before penalties, temperature and filters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tersor.runtime.engine.types import TokenLogprobs


def token_logprobs(
    logits: Tensor, chosen: Sequence[int], tops: Sequence[int]
) -> list[TokenLogprobs]:
    """Log-probability, rank and the likeliest alternatives of each chosen token.

    Args:
        logits: float32 [n, vocab_size], as the model gave them.
        chosen: the token of each row.
        tops: how many of the likeliest each row reports.
    """
    logprobs = logits.log_softmax(-1)
    ids = torch.tensor(chosen, device=logits.device)[:, None]
    own = logprobs.gather(-1, ids)
    ranks = ((logprobs > own).sum(-1) + 1).tolist()
    most = min(max(tops, default=0), logits.shape[1])
    values, top_ids = (part.tolist() for part in logprobs.topk(most, dim=-1))
    return [
        TokenLogprobs(
            token_id=token,
            logprob=logprob,
            rank=rank,
            top=dict(zip(top_ids[row][:count], values[row][:count], strict=True)),
        )
        for row, (token, logprob, rank, count) in enumerate(
            zip(chosen, own[:, 0].tolist(), ranks, tops, strict=True)
        )
    ]
