"""The contract of a source: what it is, which bundle tensors it makes, their values on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tersor.bundle.manifest import SourceSlice
from tersor.bundle.program import Program
from tersor.converters.tensors import tensor_bytes

Kind = Literal["linear", "embedding", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """One tensor the bundle will hold, before a recipe is applied to it."""

    name: str
    group: str
    kind: Kind  # how the program uses it: only `linear` and `embedding` have compressed layouts
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[SourceSlice, ...]  # stacked along dimension 0, in order
    aliases: tuple[str, ...] = ()

    @property
    def source_bytes(self) -> int:
        """Bytes of the checkpoint tensors this one is made of."""
        return sum(tensor_bytes(source.dtype, source.shape) for source in self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAsset:
    """A small file carried along under its path inside the source folder."""

    name: str
    media_type: str
    data: bytes


class Source(ABC):
    """An opened model: headers are read, values are not. Holds no file open. Not thread-safe."""

    program: Program
    tensors: tuple[PlannedTensor, ...]  # in execution order, `unused` last
    assets: tuple[SourceAsset, ...]
    description: Mapping[str, Any]  # JSON for the manifest: format, architecture, digest
    files_bytes: int  # weight files on disk

    @property
    def source_bytes(self) -> int:
        """Bytes of the tensors to be read: what progress counts."""
        return sum(tensor.source_bytes for tensor in self.tensors)

    @abstractmethod
    def read(self, tensor: PlannedTensor) -> Tensor:
        """The value of `tensor` on the host, contiguous, owned by the caller.

        Raises SourceError when the bytes cannot be read.
        """
