"""Under Triton's interpreter: every address that a kernel loads from or stores to, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder


@contextmanager
def bounded_memory(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Kernels may access `tensors` and what torch.empty makes meanwhile; else AssertionError."""
    allowed = list(tensors)
    allocate = torch.empty

    def remembered(*args: Any, **kwargs: Any) -> Tensor:
        allowed.append(allocate(*args, **kwargs))
        return allowed[-1]

    def checked(name: str) -> Any:
        access = getattr(InterpreterBuilder, name)

        def check_and_access(builder: Any, pointers: Any, *args: Any) -> Any:
            # Arguments are (mask, ...) of a load and (value, mask, ...) of a store.
            mask = args[0 if name == "create_masked_load" else 1].data
            size = pointers.get_element_ty().primitive_bitwidth // 8
            addresses = pointers.data[np.broadcast_to(mask, pointers.data.shape)].astype(np.int64)
            inside = np.zeros(addresses.shape, np.bool_)
            for tensor in allowed:
                start = tensor.data_ptr()
                inside |= (addresses >= start) & (addresses + size <= start + tensor.nbytes)
            assert inside.all(), f"{name} outside of all tensors"
            return access(builder, pointers, *args)

        return mock.patch.object(InterpreterBuilder, name, check_and_access)

    with (
        mock.patch.object(torch, "empty", remembered),
        checked("create_masked_load"),
        checked("create_masked_store"),
    ):
        yield
