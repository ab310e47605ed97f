"""Reads a `.pt2` archive of `torch.export.save` without torch's loader, which unpickles.

The archive is a zip: `<root>/models/model.json`, `<root>/data/weights/` with raw bytes and a JSON
that describes them, `<root>/data/constants/` likewise. Everything in it is foreign: sizes are
checked before anything is read, and what was pickled is refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.converters.errors import SourceError, UnsupportedSourceError
from tersor.models.graph_nodes import SCALAR_TYPES

_MAX_JSON_BYTES = 256 << 20
_LOCAL_HEADER_BYTES = 30  # of a zip entry, before its name and extra field
_STRIDED = 7
_MAX_EXPANDED_ELEMENTS = 1 << 26
_MODEL = "models/model.json"
_TABLES = {
    "data/weights/": "model_weights_config.json",
    "data/constants/": "model_constants_config.json",
}


class Archive:
    """An opened `.pt2` file; the tensors it gives out map the file and outlive it."""

    def __init__(self, path: Path) -> None:
        """Opens the archive. Raises SourceError if it is not one that torch 2.8 or later wrote."""
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise SourceError(f"{path} is not a readable .pt2 archive ({error}).") from error
        self._entries = {info.filename: info for info in self._zip.infolist()}
        models = [name for name in self._entries if name.endswith("/" + _MODEL)]
        if len(models) != 1:
            self._zip.close()
            raise SourceError(
                f"{path} holds {len(models)} programs called {_MODEL}, expected one; "
                "save it with torch.export.save of torch 2.8 or later."
            )
        self._root = models[0].removesuffix(_MODEL)

    def program(self) -> Any:
        """The saved program's JSON, unchecked."""
        return self._json(self._root + _MODEL)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and constants by name; equal storage is equal memory.

        Raises:
            SourceError: a description is malformed, or contradicts the bytes it describes.
            UnsupportedSourceError: something is pickled, or is not a plain dense tensor.
        """
        tensors: dict[str, Tensor] = {}
        for folder, table in _TABLES.items():
            name = self._root + folder + table
            if name not in self._entries:
                continue
            config = self._json(name)
            entries = config.get("config") if isinstance(config, dict) else None
            if not isinstance(entries, dict):
                raise SourceError(f"{self.path}: {name} has no object called config.")
            storages: dict[tuple[str, torch.dtype], Tensor] = {}
            for key, entry in entries.items():
                if key in tensors:
                    raise SourceError(f"{self.path} holds two tensors called {key!r}.")
                tensors[key] = self._tensor(key, entry, self._root + folder, storages)
        return tensors

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()

    def _json(self, name: str) -> Any:
        info = self._entries[name]
        if info.file_size > _MAX_JSON_BYTES:
            raise SourceError(f"{self.path}: {name} is larger than {_MAX_JSON_BYTES >> 20} MiB.")
        try:
            return json.loads(self._zip.read(info))
        except (
            ValueError,
            RecursionError,
            OSError,
            zipfile.BadZipFile,
            NotImplementedError,
        ) as error:
            raise SourceError(f"{self.path}: {name} is not readable JSON: {error}.") from error

    def _tensor(
        self, key: str, entry: Any, folder: str, storages: dict[tuple[str, torch.dtype], Tensor]
    ) -> Tensor:
        if isinstance(entry, dict) and entry.get("use_pickle") is not False:
            raise UnsupportedSourceError(
                f"{self.path}: {key!r} is pickled, which may run code when it is read; save the "
                "program with plain dense tensors."
            )
        try:
            meta = entry["tensor_meta"]
            dtype = SCALAR_TYPES[meta["dtype"]]
            sizes = [size["as_int"] for size in meta["sizes"]]
            strides = [stride["as_int"] for stride in meta["strides"]]
            offset, layout = meta["storage_offset"]["as_int"], meta["layout"]
            path_name = entry["path_name"]
        except (KeyError, TypeError, IndexError) as error:
            raise SourceError(f"{self.path}: the description of {key!r} is malformed.") from error
        numbers = [*sizes, *strides, offset]
        whole = all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
        if not whole or len(sizes) != len(strides) or layout != _STRIDED:
            raise UnsupportedSourceError(f"{self.path}: {key!r} is not a plain dense tensor.")
        last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        needed = offset + last + 1 if prod(sizes) else 0
        if not needed:
            return torch.empty(sizes, dtype=dtype)
        stored = (folder + str(path_name), dtype)
        if stored not in storages:
            storages[stored] = self._storage(key, *stored)
        storage = storages[stored]
        if needed > storage.numel():
            raise SourceError(
                f"{self.path}: {key!r} has {storage.numel()} stored values; its shape {sizes} "
                f"needs {needed}."
            )
        # An expanded tensor repeats few values, and will be written out: not beyond all bounds.
        if prod(sizes) > max(storage.numel(), _MAX_EXPANDED_ELEMENTS):
            raise UnsupportedSourceError(
                f"{self.path}: {key!r} expands {storage.numel()} stored values to {prod(sizes)}; "
                "save it as a plain tensor."
            )
        return storage.as_strided(sizes, strides, offset)

    def _storage(self, key: str, name: str, dtype: torch.dtype) -> Tensor:
        info = self._entries.get(name)
        if info is None:
            raise SourceError(f"{self.path}: the values of {key!r}, {name}, are missing.")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UnsupportedSourceError(
                f"{self.path}: {name} is compressed or encrypted; torch.export.save stores plainly."
            )
        count = info.file_size // dtype.itemsize
        if count == 0:
            return torch.empty(0, dtype=dtype)
        data = np.memmap(self.path, np.uint8, "c", self._offset(info), (count * dtype.itemsize,))
        return torch.from_numpy(data).view(dtype)

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin: its local header has lengths of its own."""
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER_BYTES)
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = info.header_offset + _LOCAL_HEADER_BYTES + lengths
        if start + info.file_size > self.path.stat().st_size:
            raise SourceError(f"{self.path} is truncated: {info.filename} ends beyond the file.")
        return start


def output_names(saved: Any) -> list[str] | None:
    """Names of a saved program's results, where it returns a dict, a tuple or a list of tensors.

    None where the signature says anything else; raises as malformed JSON does (KeyError, …).
    """
    text = saved["graph_module"]["module_call_graph"][0]["signature"]["out_spec"]
    _protocol, root = json.loads(text)
    children = root["children_spec"]
    if root["type"] is None:
        return ["output"]
    if any(child["type"] is not None for child in children):
        return None
    if root["type"] == "builtins.dict":
        keys: Mapping[str, Any] = dict.fromkeys(str(key) for key in json.loads(root["context"]))
        return list(keys)
    if root["type"] not in {"builtins.tuple", "builtins.list"}:
        return None
    return ["output"] if len(children) == 1 else [f"output_{i}" for i in range(len(children))]
