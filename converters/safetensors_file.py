"""Writes a safetensors file tensor by tensor: the library's writer wants all of them at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

_ALIGNMENT = 8  # bytes; the format wants the values to begin aligned


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One entry of the header; `dtype` is safetensors' name for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


class SafetensorsFile:
    """A file whose tensors are known beforehand and appended in that order.

    A context manager: the file appears under its name when the context ends without an error.
    """

    def __init__(self, path: Path, tensors: Sequence[FileTensor]) -> None:
        """Writes the header next to `path`. Raises OSError."""
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._expected = list(reversed(tensors))
        self._file = self._partial.open("wb")
        self._file.write(_header(tensors))

    def append(self, tensor: Tensor) -> None:
        """The next tensor of the header; little-endian row-major. Raises OSError."""
        expected = self._expected.pop()
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        assert data.nbytes == expected.num_bytes, (expected, tensor.shape, tensor.dtype)
        self._file.write(data.data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None:
            assert not self._expected, self._expected
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)


def _header(tensors: Sequence[FileTensor]) -> bytes:
    """Length u64, then JSON padded with spaces."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
