"""Reads the safetensors files of a folder, one or sharded, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tersor.bundle.manifest import SourceSlice
from tersor.converters.errors import SourceError, UnsupportedSourceError
from tersor.converters.sources.config import JsonObject
from tersor.converters.tensors import FROM_SAFETENSORS, tensor_bytes
from tersor.models.weights import torch_dtype

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DIGEST_BYTES = 16 << 20  # hashed at once, by several threads
_OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "model.ckpt")


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """Where one tensor is and what it is."""

    name: str
    file: str
    dtype: str  # bundle name
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return tensor_bytes(self.dtype, self.shape)

    def slice(self) -> SourceSlice:
        """Provenance of a bundle tensor that takes this one whole."""
        rows = self.shape[0] if self.shape else 1
        return SourceSlice(tensor=self.name, dtype=self.dtype, shape=self.shape, rows=rows)


class Checkpoint:
    """All tensors of a folder's safetensors files. Values are read on demand.

    Files are mapped for the time of one read only: a mapping that stays would grow to the size of
    the checkpoint in the process's resident memory.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the headers of every file.

        Raises:
            SourceError: no safetensors files, or they are damaged or disagree with their index.
            UnsupportedSourceError: a tensor has a dtype that bundles do not know.
        """
        self._folder = folder
        self._files: list[str] = []
        self.tensors: dict[str, CheckpointTensor] = {}
        for file, expected in _placement(folder).items():
            self._list(file, expected)

    def read(self, name: str) -> Tensor:
        """The tensor called `name`. Raises SourceError if its file has changed meanwhile."""
        with _opened(self._folder / self.tensors[name].file) as handle:
            tensor: Tensor = handle.get_tensor(name)
            return tensor

    def stack(self, sources: Sequence[SourceSlice], dtype: str) -> Tensor:
        """Tensors of equal trailing shape, one under the other, in `dtype`; owned by the caller."""
        if len(sources) == 1 and not sources[0].shape:
            return self.read(sources[0].tensor).to(torch_dtype(dtype), copy=True)
        rows = sum(source.rows for source in sources)
        out = torch.empty((rows, *sources[0].shape[1:]), dtype=torch_dtype(dtype))
        start = 0
        for source in sources:
            out[start : start + source.rows].copy_(self.read(source.tensor))
            start += source.rows
        return out

    def digest(self) -> str:
        """BLAKE3 over the files' contents, in order of their names."""
        whole = blake3()
        for file in sorted(self._files):
            one = blake3(max_threads=blake3.AUTO)
            with (self._folder / file).open("rb") as stream:
                while piece := stream.read(_DIGEST_BYTES):
                    one.update(piece)
            whole.update(file.encode() + b"\0" + one.digest())
        return whole.hexdigest()

    def file_bytes(self) -> int:
        """Size of the files on disk."""
        return sum((self._folder / file).stat().st_size for file in self._files)

    def _list(self, file: str, expected: frozenset[str] | None) -> None:
        path = self._folder / file
        if not path.is_file():
            raise SourceError(f"{path} is missing, but {INDEX_FILE} names it.")
        self._files.append(file)
        with _opened(path) as handle:
            names = frozenset(handle.keys())
            if expected is not None and names != expected:
                wrong = ", ".join(sorted(names ^ expected)[:8])
                raise SourceError(f"{path} and {INDEX_FILE} disagree about: {wrong}.")
            for name in sorted(names):
                if name in self.tensors:
                    other = self.tensors[name].file
                    raise SourceError(f"tensor {name!r} is in both {other} and {file}.")
                self.tensors[name] = _describe(handle, name, file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:  # safetensors' handles are untyped
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise SourceError(
            f"{path} is not a readable safetensors file ({error}); download it again."
        ) from error


def _describe(handle: Any, name: str, file: str) -> CheckpointTensor:
    view = handle.get_slice(name)
    theirs = view.get_dtype()
    if theirs not in FROM_SAFETENSORS:
        raise UnsupportedSourceError(
            f"tensor {name!r} in {file} has dtype {theirs}; supported are "
            f"{', '.join(sorted(FROM_SAFETENSORS))}."
        )
    return CheckpointTensor(name, file, FROM_SAFETENSORS[theirs], tuple(view.get_shape()))


def _placement(folder: Path) -> dict[str, frozenset[str] | None]:
    """File name -> the tensors its index promises (None: no index)."""
    index_path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file():
        return {SINGLE_FILE: None}
    if not index_path.is_file():
        others = [name for name in _OTHER_WEIGHTS if (folder / name).exists()]
        hint = (
            f"it holds {others[0]}: save the model with save_pretrained(safe_serialization=True)"
            if others
            else f"expected {SINGLE_FILE} or {INDEX_FILE}"
        )
        raise SourceError(f"{folder} has no safetensors weights; {hint}.")
    weight_map = JsonObject.load(index_path).mapping("weight_map")
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith(".safetensors")
        ):
            raise SourceError(
                f"{index_path} places {name!r} in {file!r}; expected a .safetensors file name."
            )
        files.setdefault(file, set()).add(name)
    if not files:
        raise SourceError(f"{index_path} lists no tensors.")
    return {file: frozenset(names) for file, names in sorted(files.items())}
