"""A `.pt2` file of `torch.export.save` as a source; nothing in it is ever unpickled or executed."""

from __future__ import annotations

from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from tersor.bundle.manifest import SourceSlice
from tersor.bundle.program import GraphProgram
from tersor.converters.errors import SourceError, UnsupportedSourceError
from tersor.converters.sources.archive import Archive, output_names
from tersor.converters.sources.base import PlannedTensor, Source, SourceAsset
from tersor.converters.sources.graphs import ExportedGraph, GraphTensor
from tersor.models.errors import ModelError, UnsupportedProgramError
from tersor.models.export import program_from_saved
from tersor.models.graph_json import parse_graph
from tersor.models.weights import dtype_name

# What reducing JSON of the wrong shape raises; the reduced JSON itself is checked field by field.
_MALFORMED = (
    KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration, RecursionError,
)  # fmt: skip


class ExportedSource(Source):
    """An inference program of plain tensors."""

    program: GraphProgram

    def __init__(self, path: Path) -> None:
        """Opens the archive and checks its graph.

        Raises:
            SourceError: the archive is damaged or contradicts itself.
            UnsupportedSourceError: something in it is pickled, or the program cannot be served.
        """
        archive = Archive(path)
        try:
            graph = _read_graph(archive)
        finally:
            archive.close()
        self.program = graph.program
        self._tensors = {tensor.name: tensor for tensor in graph.tensors}
        self.tensors = tuple(tensor.planned(_slice(tensor)) for tensor in graph.tensors)
        self.assets = (
            SourceAsset(
                name=graph.program.graph_asset, media_type="application/json", data=graph.graph_json
            ),
        )
        digest = blake3(max_threads=blake3.AUTO)
        digest.update_mmap(path)
        self.description = {"format": "torch.export", "files_digest": digest.hexdigest()}
        self.files_bytes = path.stat().st_size

    def read(self, tensor: PlannedTensor) -> Tensor:
        return self._tensors[tensor.name].value.clone(memory_format=torch.contiguous_format)


def _slice(tensor: GraphTensor) -> SourceSlice:
    shape = tuple(tensor.value.shape)
    rows = shape[0] if shape else 1
    dtype = dtype_name(tensor.value.dtype)
    return SourceSlice(tensor=tensor.name, dtype=dtype, shape=shape, rows=rows)


def _read_graph(archive: Archive) -> ExportedGraph:
    weights = archive.tensors()
    saved = archive.program()
    try:
        names = output_names(saved)
        if names is None:
            raise UnsupportedSourceError(
                f"{archive.path}: the program returns a nested structure; wrap the module so that "
                "it returns a tensor, a tuple of tensors or a dict of tensors."
            )
        parts = program_from_saved(saved, weights, output_names=names)
    except UnsupportedProgramError as error:
        raise UnsupportedSourceError(f"{archive.path} cannot be served: {error}") from error
    except ModelError as error:
        raise SourceError(f"{archive.path} does not run: {error}") from error
    except _MALFORMED as error:
        raise SourceError(
            f"{archive.path}: models/model.json is not a program that torch.export.save wrote "
            f"({type(error).__name__}: {error})."
        ) from error
    graph = ExportedGraph.of(parts)
    _check_values(archive, graph)
    return graph


def _check_values(archive: Archive, graph: ExportedGraph) -> None:
    """The graph declares shape and dtype of every weight; the stored ones have to be of it."""
    values = {tensor.name: tensor.value for tensor in graph.tensors}
    problems = []
    for weight in parse_graph(graph.graph_json).weights.values():
        value = values[weight.name]
        if (tuple(value.shape), value.dtype) != (weight.shape, weight.dtype):
            problems.append(
                f"{weight.name} is {dtype_name(value.dtype)} {list(value.shape)}, "
                f"the program needs {dtype_name(weight.dtype)} {list(weight.shape)}"
            )
    if problems:
        raise SourceError(f"{archive.path} contradicts itself: {'; '.join(problems)}.")
