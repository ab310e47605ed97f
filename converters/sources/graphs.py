"""What graph sources share: an exported graph with its weights, and how the graph uses each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.bundle.manifest import SourceSlice
from tersor.bundle.program import GraphProgram
from tersor.converters.errors import UnsupportedSourceError
from tersor.converters.sources.base import Kind, PlannedTensor
from tersor.models.errors import UnsupportedProgramError
from tersor.models.export import GraphParts, program_from_exported
from tersor.models.graph_ir import Graph, Node, Ref
from tersor.models.graph_json import parse_graph
from tersor.models.graph_operators import EMBEDDING, LINEAR
from tersor.models.weights import dtype_name

_KINDS: Mapping[str, Kind] = {LINEAR: "linear", EMBEDDING: "embedding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTensor:
    """A weight of the graph, or an unused one of its program."""

    name: str
    group: str
    kind: Kind
    value: Tensor

    def planned(self, *sources: SourceSlice) -> PlannedTensor:
        """The bundle tensor that takes its values from `sources`, or has none in a checkpoint."""
        dtype = sources[0].dtype if sources else dtype_name(self.value.dtype)
        return PlannedTensor(
            name=self.name,
            group=self.group,
            kind=self.kind,
            shape=tuple(self.value.shape),
            dtype=dtype,
            sources=sources,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedGraph:
    """A program, its JSON, and its weights in execution order."""

    program: GraphProgram
    graph_json: bytes
    tensors: tuple[GraphTensor, ...]

    @classmethod
    def of(cls, parts: GraphParts) -> ExportedGraph:
        """Adds to `parts` how the graph uses each weight."""
        kinds = weight_kinds(parse_graph(parts.graph_json))
        tensors = tuple(
            GraphTensor(name=name, group=group, kind=kinds.get(name, "other"), value=value)
            for name, value, group in parts.tensors
        )
        return cls(program=parts.program, graph_json=parts.graph_json, tensors=tensors)


def trace(
    module: nn.Module, inputs: Mapping[str, Tensor], *, dynamic: Mapping[int, tuple[str, int]]
) -> ExportedGraph:
    """Exports `module` for inputs like `inputs`, passed by name.

    Args:
        module: in evaluation mode; returns a dict of tensors.
        inputs: examples; no dynamic dimension may be 1.
        dynamic: dimension -> (name, greatest size), the same for every input.

    Raises:
        UnsupportedSourceError: an operator of the program cannot be served.
    """
    dims = {
        index: torch.export.Dim(name, min=1, max=limit) for index, (name, limit) in dynamic.items()
    }
    shapes = dict.fromkeys(inputs, dims)
    with warnings.catch_warnings():
        # The exporter warns about its own internals; what it produces is checked below.
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            module, (), kwargs=dict(inputs), dynamic_shapes=shapes, strict=False
        )
        batch = dynamic[0][1] if 0 in dynamic else 1
        try:
            return ExportedGraph.of(program_from_exported(exported, max_batch_size=batch))
        except UnsupportedProgramError as error:
            raise UnsupportedSourceError(f"the traced model cannot be served: {error}") from error


def weight_kinds(graph: Graph) -> Mapping[str, Kind]:
    """Weight name -> its use: only matrices that no other operator reads can be compressed."""
    kinds: dict[str, Kind] = {}
    for node in graph.nodes:
        for value, use in _uses(node):
            weight = graph.weights.get(value)
            if weight is None:
                continue
            uses = {use, kinds.get(weight.name, use)}
            if len(weight.shape) != 2 or "other" in uses:
                kinds[weight.name] = "other"
            else:  # a matrix that is both looked up and multiplied counts as the embedding it is
                kinds[weight.name] = "embedding" if "embedding" in uses else "linear"
    for value in graph.outputs:
        if value in graph.weights:
            kinds[graph.weights[value].name] = "other"
    return kinds


def _uses(node: Node) -> Iterator[tuple[str, Kind]]:
    """Every value the node reads, and as what."""
    for argument in node.arguments:
        items = argument.value if isinstance(argument.value, tuple) else (argument.value,)
        for item in items:
            if isinstance(item, Ref):
                as_weight = argument.name == "weight"
                yield item.name, _KINDS.get(node.target, "other") if as_weight else "other"
