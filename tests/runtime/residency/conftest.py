from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fake_groups import MakeResidency

from tersor.runtime.residency import Residency


@pytest.fixture
def make_residency() -> Iterator[MakeResidency]:
    """Builds residencies on the CPU and closes them after the test."""
    made: list[Residency] = []

    def make(*, budget: int | None = None, host: int = 0, prefetch: int = 0) -> Residency:
        residency = Residency(
            device=torch.device("cpu"),
            budget_bytes=budget,
            host_budget_bytes=host,
            prefetch_groups=prefetch,
        )
        made.append(residency)
        return residency

    yield make
    for residency in made:
        residency.close()
