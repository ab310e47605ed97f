"""Uninitialized memory that cannot pass for a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor


def _poison(tensor: Tensor) -> Tensor:
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(113)


def _poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        return _poison(allocate(*args, **kwargs))

    return poisoned


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills what torch.empty and its relatives return with NaN: an unwritten output then shows."""
    with (
        mock.patch.object(torch, "empty", _poisoning(torch.empty)),
        mock.patch.object(torch, "empty_like", _poisoning(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", _poisoning(Tensor.new_empty)),
    ):
        yield
