"""Rows to sample from, and what may come of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Logits and a setting for each row, as `sample_rows` takes them."""

    logits: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    @property
    def operands(self) -> tuple[Tensor, ...]:
        return (
            self.logits, self.temperature, self.top_k, self.top_p, self.min_p, self.uniform,
        )  # fmt: skip

    def to(self, device: torch.device) -> Rows:
        return Rows(*(operand.to(device) for operand in self.operands))


def random_rows(vocab: int, count: int, *, seed: int = 0, ties: bool = False) -> Rows:
    """Settings of all kinds; with `ties` the logits are a handful of numbers."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    logits = 2.5 * torch.randn(count, vocab, generator=generator)
    if ties:
        logits = logits.round()

    def drawn(*choices: float) -> Tensor:
        return torch.tensor([float(rng.choice(choices)) for _ in range(count)])

    return Rows(
        logits=logits,
        temperature=drawn(0.0, 0.2, 1.0, 1.0, 4.0, 30.0),
        top_k=drawn(0, 0, 1, 5, 40, 300, 100000).int(),
        top_p=drawn(1.0, 1.0, 0.999, 0.9, 0.3, 1e-6),
        min_p=drawn(0.0, 0.0, 0.01, 0.3, 1.0),
        uniform=torch.rand(count, generator=generator),
    )


def distribution(rows: Rows, row: int) -> Tensor:
    """float64 [vocab]: the probability of each token, by plain sorting."""
    logits = rows.logits[row].double()
    temperature = float(rows.temperature[row])
    if temperature == 0.0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    weights = ((logits - logits.max()) / temperature).exp()
    weights[weights < float(rows.min_p[row])] = 0.0
    # By the float32 logits: their ties are ties whatever the temperature makes of them.
    order = rows.logits[row].argsort(descending=True, stable=True)
    kept = weights[order]
    if int(rows.top_k[row]):
        kept[int(rows.top_k[row]) :] = 0.0
    before = kept.cumsum(0) - kept
    kept[1:][(before >= float(rows.top_p[row]) * kept.sum())[1:]] = 0.0
    return torch.zeros_like(weights).scatter_(0, order, kept / kept.sum())


def assert_tokens(tokens: Tensor, rows: Rows, *, edge: float = 1e-4) -> None:
    """Each token is the one at which the cumulative distribution exceeds the row's number.

    Within `edge` of a step float32 may fall on either side, and a nucleus may end a token earlier
    or later; there the token before or after will do.
    """
    exact = 0
    for row, token in enumerate(tokens.tolist()):
        probabilities = distribution(rows, row)
        cumulative = probabilities.cumsum(0)
        target = float(rows.uniform[row])
        expected = int(torch.searchsorted(cumulative, target, right=True))
        low = int(torch.searchsorted(cumulative, target - edge, right=True))
        high = int(torch.searchsorted(cumulative, target + edge, right=True))
        exact += token == expected
        assert low <= token <= high or token == expected, (row, token, expected, low, high)
    assert exact >= 0.9 * len(tokens), f"only {exact} of {len(tokens)} are the expected token"
