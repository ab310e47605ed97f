"""What a GPU would be asked to run: torch's kernels and Triton's, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

_ALLOCATIONS = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty",
    "aten::_unsafe_view", "aten::detach",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Records every operator in its scope that neither makes a view nor only allocates.

    `names` has them in order. A custom operator counts once, whatever it launches.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's mode has no types
        self.names: list[str] = []
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        result = func(*args, **(kwargs or {}))
        # aten::to, reshape and contiguous are views where they have nothing to do.
        view = func.is_view and _storage(result) == _storage(args[0])
        if not (self.paused or view or name in _ALLOCATIONS):
            self.names.append(name)
        return result


def _storage(result: Any) -> int:
    """Which memory a tensor, or the first of several, lies in."""
    tensor: Tensor = result if isinstance(result, Tensor) else result[0]
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def interpreted_launches() -> Iterator[list[str]]:
    """As `Launches`, for code whose Triton kernels the interpreter runs; those count by name."""
    launch = GridExecutor.__call__
    with Launches() as launches:

        def counted(executor: Any, *args: Any, **kwargs: Any) -> Any:
            launches.names.append(executor.fn.__name__)
            launches.paused = True
            try:
                return launch(executor, *args, **kwargs)
            finally:
                launches.paused = False

        with mock.patch.object(GridExecutor, "__call__", counted):
            yield launches.names
