"""From a `torch.export` program to what a bundle holds: a program, its JSON and its weights."""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tersor.bundle.program import UNUSED_GROUP, GraphProgram, TensorSpec, TextFrontend
from tersor.kernels.dense import DenseLayout
from tersor.models.errors import (
    InvalidInputError,
    ProgramFailedError,
    UnsupportedProgramError,
)
from tersor.models.graph import GraphModel
from tersor.models.graph_ir import Graph, TensorType
from tersor.models.graph_json import parse_graph
from tersor.models.graph_rewrite import names_in, operands, rewrite, weight_names
from tersor.models.weights import ResidentWeights, dtype_name

GRAPH_ASSET = "graph.json"
_FIRST_GROUP = "stem"  # weights outside numbered layers, by whether they come before those
_LAST_GROUP = "head"
_CONTAINERS = {dict, OrderedDict, tuple, list}  # of outputs; others mean a library's own classes
_EXAMPLE_SIZE = 4  # of a dynamic dimension, where the program's range admits it
_MAX_EXAMPLE_ELEMENTS = 1 << 24
_ROW_TOLERANCE = 1e-3  # relative; another batch size may pick another summation order


class GraphParts(NamedTuple):
    """What a bundle needs of an exported program."""

    program: GraphProgram
    graph_json: bytes
    tensors: list[tuple[str, Tensor, str]]  # name, values, group; groups in execution order


def program_from_exported(
    exported: ExportedProgram,
    *,
    output_names: Sequence[str] | None = None,
    max_batch_size: int = 64,
    text: TextFrontend | None = None,
) -> GraphParts:
    """Takes an exported program apart; nothing of the exporter's process is needed to run it again.

    Inputs keep the names of the module's arguments. Outputs are named by the keys of a returned
    dict, else `output` or `output_0`, `output_1`, …. Weights keep their qualified names and are
    grouped by numbered layer; those the graph never reads come last, in the group `unused`.

    Args:
        exported: an inference program of plain tensors, exported after `eval()`.
        output_names: names for the outputs, instead of the above.
        max_batch_size: upper bound where the program's own range for the batch has none.
        text: how text becomes the inputs.

    Raises:
        UnsupportedProgramError: the program changes state, takes or returns anything but tensors,
            or calls an operator that this build does not allow.
    """
    exported = _functional(exported)
    return program_from_saved(
        _saved_json(exported),
        _weights(exported),
        output_names=_output_names(exported, output_names),
        examples=_examples(exported),
        max_batch_size=max_batch_size,
        text=text,
    )


def program_from_saved(
    saved: Any,
    weights: Mapping[str, Tensor],
    *,
    output_names: Sequence[str],
    examples: Sequence[Tensor] | None = None,
    max_batch_size: int = 64,
    text: TextFrontend | None = None,
) -> GraphParts:
    """Takes apart what `torch.export.save` wrote, without torch's own loader.

    Args:
        saved: `models/model.json`, parsed. From a foreign file it may be anything: the result is
            checked as a bundle's graph is, but reducing it may raise KeyError, TypeError,
            ValueError, IndexError, AttributeError, StopIteration or RecursionError.
        weights: parameters, buffers and constants by name; equal memory is one weight.
        output_names: one a result.
        examples: inputs in order, to see whether rows of a batch are independent; None makes up
            tensors of ones, and does not batch a program that fails on them.
        max_batch_size: as in `program_from_exported`, and so the rest.
        text: how text becomes the inputs.

    Raises:
        UnsupportedProgramError: as `program_from_exported`.
    """
    core = rewrite(saved, _tied(weights))
    groups, order = _groups(core)
    core["weight_groups"] = groups
    graph_json = json.dumps(core, separators=(",", ":"), allow_nan=False).encode()
    graph = parse_graph(graph_json)
    if len(output_names) != len(graph.outputs):
        raise UnsupportedProgramError(
            f"the program returns {len(graph.outputs)} tensors, got {len(output_names)} names "
            "for them"
        )
    tensors = _tensors(weights, groups, order)
    if any(group == UNUSED_GROUP for _, _, group in tensors):
        order = (*order, UNUSED_GROUP)
    program = _program(graph, output_names, order, text)
    # Building the model resolves every operator: what cannot be served is refused here.
    resident = ResidentWeights(_resident(tensors))
    model = GraphModel(program, graph_json, resident, device=torch.device("cpu"))
    largest = _largest_batch(graph, max_batch_size)
    if largest is not None and _can_batch(model, graph, examples):
        program = replace(program, batch_dim_dynamic=True, max_batch_size=largest)
    return GraphParts(program, graph_json, tensors)


def _program(
    graph: Graph, output_names: Sequence[str], order: tuple[str, ...], text: TextFrontend | None
) -> GraphProgram:
    outputs = zip(output_names, graph.output_types, strict=True)
    return GraphProgram(
        graph_asset=GRAPH_ASSET,
        schema_version=graph.schema_version,
        torch_version=graph.torch_version,
        inputs=tuple(_spec(name, type_) for name, type_ in graph.inputs),
        outputs=tuple(_spec(name, type_) for name, type_ in outputs),
        group_order=order,
        text=text,
    )


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """The same program without operators that write to their operands."""
    for node in exported.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None and schema.is_mutable:
            with warnings.catch_warnings():
                # torch 2.13 uses an interface here that it deprecates itself.
                warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
                # An empty table decomposes nothing: what is left is to functionalize.
                functional: ExportedProgram = exported.run_decompositions({})
            return functional
    return exported


def _saved_json(exported: ExportedProgram) -> Any:
    """The JSON that torch writes, the only public form of it being inside a saved program."""
    with tempfile.TemporaryFile() as file:
        torch.export.save(exported, file)
        with zipfile.ZipFile(file) as archive:
            name = next(n for n in archive.namelist() if n.endswith("models/model.json"))
            return json.loads(archive.read(name))


def _output_names(exported: ExportedProgram, given: Sequence[str] | None) -> list[str]:
    spec = exported.call_spec.out_spec
    children = [] if spec is None else spec.children()
    plain = spec is not None and all(child.is_leaf() for child in children)
    if spec is None or not plain or not (spec.is_leaf() or spec.type in _CONTAINERS):
        kind = getattr(getattr(spec, "type", None), "__name__", "a nested structure")
        raise UnsupportedProgramError(
            f"the program returns {kind}; wrap the module so that it returns a tensor, a tuple of "
            "tensors or a dict of tensors"
        )
    if given is not None:
        return list(given)
    if spec.is_leaf():
        return ["output"]
    if spec.type in {dict, OrderedDict}:
        return [str(key) for key in spec.context]
    return [f"output_{i}" for i in range(len(children))] if len(children) > 1 else ["output"]


def _weights(exported: ExportedProgram) -> dict[str, Tensor]:
    """Parameters, buffers and constants by name."""
    values = {**exported.state_dict, **exported.constants}
    return {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}


def _tied(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of weights that are the very memory of an earlier one -> the earlier one's name."""
    first: dict[object, str] = {}
    tied = {}
    for name, tensor in weights.items():
        if tensor.numel():
            memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if first.setdefault(memory, name) != name:
                tied[name] = first[memory]
    return tied


def _groups(core: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Weight name -> group, in order of first use, and the groups in that order."""
    weights = weight_names(core)
    graph = core["graph_module"]["graph"]
    used = (name for node in graph["nodes"] for name in operands(node))
    returned = (name for output in graph["outputs"] for name in names_in(output))
    groups: dict[str, str] = {}
    numbered = False
    for value in (*used, *returned):
        if value in weights:
            layer = _numbered_layer(weights[value])
            numbered = numbered or layer is not None
            group = layer or (_LAST_GROUP if numbered else _FIRST_GROUP)
            groups.setdefault(weights[value], group)
    return groups, tuple(dict.fromkeys(groups.values()))


def _numbered_layer(name: str) -> str | None:
    """`encoder.layer.3` for `encoder.layer.3.output.dense.weight`; None without a number."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: index + 1])
    return None


def _tensors(
    values: Mapping[str, Tensor], groups: Mapping[str, str], order: Sequence[str]
) -> list[tuple[str, Tensor, str]]:
    by_group: dict[str, list[str]] = {group: [] for group in (*order, UNUSED_GROUP)}
    for name, group in groups.items():
        by_group[group].append(name)
    by_group[UNUSED_GROUP] = [name for name in values if name not in groups]
    return [(name, values[name], group) for group, names in by_group.items() for name in names]


def _spec(name: str, type_: TensorType) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in type_.shape)
    return TensorSpec(name=name, dtype=dtype_name(type_.dtype), shape=shape)


def _resident(tensors: Sequence[tuple[str, Tensor, str]]) -> dict[str, dict[str, DenseLayout]]:
    groups: dict[str, dict[str, DenseLayout]] = {}
    for name, tensor, group in tensors:
        groups.setdefault(group, {})[name] = DenseLayout(tensor)
    return groups


def _largest_batch(graph: Graph, cap: int) -> int | None:
    """The largest batch, where dimension 0 of every input and output is one and the same symbol."""
    shapes = [type_.shape for _, type_ in graph.inputs]
    shapes += [type_.shape for type_ in graph.output_types]
    symbols = {shape[0] if shape else None for shape in shapes}
    symbol = symbols.pop() if len(symbols) == 1 else None
    if not isinstance(symbol, str):
        return None
    low, high = graph.ranges.get(symbol, (0, cap))
    # Requests come one row at a time, so a program that needs two rows is not batched.
    return min(cap, high) if low <= 1 else None


def _examples(exported: ExportedProgram) -> list[Tensor]:
    return [
        leaf for leaf in pytree.tree_leaves(exported.example_inputs) if isinstance(leaf, Tensor)
    ]


def _can_batch(model: GraphModel, graph: Graph, examples: Sequence[Tensor] | None) -> bool:
    try:
        return _rows_are_independent(model, _made_up(graph) if examples is None else examples)
    except (InvalidInputError, ProgramFailedError):
        return False


def _made_up(graph: Graph) -> list[Tensor]:
    """Ones of the inputs' types; none where a size is computed, or too large to try."""
    tensors = []
    for _, type_ in graph.inputs:
        sizes = []
        for dim in type_.shape:
            low, high = (
                graph.ranges.get(dim, (0, _EXAMPLE_SIZE)) if isinstance(dim, str) else (0, 0)
            )
            sizes.append(dim if isinstance(dim, int) else max(low, min(_EXAMPLE_SIZE, high)))
        if None in type_.shape or prod(sizes) > _MAX_EXAMPLE_ELEMENTS:
            return []
        tensors.append(torch.ones(sizes, dtype=type_.dtype))
    return tensors


def _rows_are_independent(model: GraphModel, examples: Sequence[Tensor]) -> bool:
    """Whether a row's outputs stay the same beside other rows: equal shapes do not promise that.

    The first example row runs alone and beside a row of zeros, which are valid indices, too.
    """
    names = [spec.name for spec in model.program.inputs]
    if len(examples) != len(names):
        return False
    alone = {name: tensor[:1] for name, tensor in zip(names, examples, strict=True)}
    beside = {name: torch.cat((row, torch.zeros_like(row))) for name, row in alone.items()}
    expected, actual = model.run(alone), model.run(beside)
    return all(
        _near(actual[name][:1], expected[name]) and actual[name].shape[0] == 2 for name in expected
    )


def _near(actual: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    scale = expected.abs().nan_to_num().max() if expected.numel() else torch.zeros(())
    return torch.allclose(
        actual, expected, rtol=0.0, atol=_ROW_TOLERANCE * float(scale), equal_nan=True
    )
