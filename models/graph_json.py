"""Reads the JSON of an exported program into a graph that is safe to run.

The JSON is the core of what `torch.export` writes (nodes, signature, shapes of inputs and weights,
ranges), plus the group of each weight; `export.py` takes it out of a saved program. torch's own
deserializer never sees it: that one evaluates symbolic expressions and guards as Python code,
resolves operators by name and falls back to unpickling. Here every field is checked, every operator
must be on the allow list, and sizes are computed by the graph's own nodes, so no expression is
evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tersor.models.errors import UnsupportedProgramError
from tersor.models.graph_ir import Dim, Graph, Node, Ref, TensorType, Value, Weight
from tersor.models.graph_nodes import (
    SCALAR_TYPES,
    Json,
    JsonObject,
    as_list,
    as_object,
    as_text,
    read_node,
    refuse,
)

SCHEMA_MAJOR = 8  # of torch 2.7 and later; minor versions only add optional fields
MAX_JSON_BYTES = 64 << 20
MAX_NODES = 200_000
MAX_RANK = 16
_MAX_DIM = (1 << 63) - 1
# torch 2.13 writes a symbol as sympy's repr, older ones by name. Anything else is an expression of
# symbols: it is not evaluated, the dimension counts as dynamic.
_SYMBOL = re.compile(r"(?:Symbol\('(\w{1,64})'(?:, \w+=(?:True|False))*\)|([A-Za-z_]\w{0,63}))")

_TOP = {
    "schema_version", "torch_version", "range_constraints", "weight_groups", "graph_module",
}  # fmt: skip


def parse_graph(graph_json: bytes) -> Graph:
    """Reads and checks a graph.

    Raises:
        UnsupportedProgramError: not JSON, not of this schema, or anything in it that this build
            does not know: an operator, an argument, a kind of input or output.
    """
    top = _object(_load(graph_json), "the graph", _TOP)
    _check_version(_object(top["schema_version"], "schema_version", {"major", "minor"}))
    module = _object(top["graph_module"], "graph_module", {"graph", "signature"})
    graph = _object(module["graph"], "graph", {"inputs", "outputs", "nodes", "tensor_values"})
    signature = _object(module["signature"], "signature", {"input_specs", "output_specs"})
    types = _tensor_types(as_object(graph["tensor_values"], "tensor_values"))
    groups = {
        name: as_text(group, f"group of {name!r}")
        for name, group in as_object(top["weight_groups"], "weight_groups").items()
    }
    inputs, weights = _inputs(as_list(signature["input_specs"], "input_specs"), types, groups)
    listed = [_tensor_name(item, "graph input") for item in as_list(graph["inputs"], "inputs")]
    if sorted(listed) != sorted([*(name for name, _ in inputs), *weights]):
        raise refuse("the inputs of the graph are not those of its signature")
    nodes = _nodes(as_list(graph["nodes"], "nodes"), {*listed})
    outputs = _outputs(as_list(signature["output_specs"], "output_specs"))
    if outputs != [_tensor_name(item, "output") for item in as_list(graph["outputs"], "outputs")]:
        raise refuse("the outputs of the graph are not those of its signature")
    defined = {*listed, *(name for node in nodes for name in node.results)}
    for name in outputs:
        if name not in defined or name not in types:
            raise refuse(f"output {name!r} is computed by no node or has no shape")
    return Graph(
        torch_version=as_text(top["torch_version"], "torch_version"),
        schema_version=_version(top["schema_version"]),
        inputs=tuple(inputs),
        weights=weights,
        nodes=nodes,
        outputs=tuple(outputs),
        output_types=tuple(types[name] for name in outputs),
        ranges=_ranges(as_object(top["range_constraints"], "range_constraints")),
    )


def _load(graph_json: bytes) -> Json:
    if len(graph_json) > MAX_JSON_BYTES:
        raise refuse(f"{len(graph_json)} bytes of JSON, at most {MAX_JSON_BYTES} are read")
    try:
        return json.loads(graph_json, object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnsupportedProgramError:
        raise
    except (ValueError, RecursionError) as error:
        raise refuse(f"it is not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Json]]) -> JsonObject:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise refuse("an object names a field twice")
    return fields


def _no_constant(text: str) -> Json:
    raise refuse(f"{text} is not JSON")


def _object(value: Json, where: str, keys: set[str]) -> JsonObject:
    fields = as_object(value, where)
    if fields.keys() != keys:
        raise refuse(f"{where} has the fields {sorted(fields)}, expected {sorted(keys)}")
    return fields


def _version(value: Json) -> tuple[int, int]:
    fields = as_object(value, "schema_version")
    major, minor = fields.get("major"), fields.get("minor")
    if type(major) is not int or type(minor) is not int:
        raise refuse(f"schema_version must be two integers, got {value!r}")
    return major, minor


def _check_version(fields: JsonObject) -> None:
    major, minor = _version(fields)
    if major != SCHEMA_MAJOR or minor < 0:
        raise refuse(
            f"its schema is {major}.{minor}, this build reads {SCHEMA_MAJOR}.x; "
            "export it again with a torch that writes that"
        )


def _tensor_types(values: JsonObject) -> Mapping[str, TensorType]:
    return {name: _tensor_type(value, f"tensor {name!r}") for name, value in values.items()}


def _tensor_type(value: Json, where: str) -> TensorType:
    fields = as_object(value, where)
    code = fields.get("dtype")
    if type(code) is not int or code not in SCALAR_TYPES:
        raise refuse(f"{where} has the unknown dtype {code!r}")
    sizes = as_list(fields.get("sizes"), f"sizes of {where}")
    if len(sizes) > MAX_RANK:
        raise refuse(f"{where} has {len(sizes)} dimensions, at most {MAX_RANK} are supported")
    return TensorType(dtype=SCALAR_TYPES[code], shape=tuple(_dim(size, where) for size in sizes))


def _dim(value: Json, where: str) -> Dim:
    fields = as_object(value, f"a size of {where}")
    size = fields.get("as_int")
    if len(fields) == 1 and type(size) is int and 0 <= size <= _MAX_DIM:
        return size
    if fields.keys() == {"as_expr"}:
        expression = as_object(fields["as_expr"], f"a size of {where}").get("expr_str")
        match = _SYMBOL.fullmatch(as_text(expression, f"a size of {where}"))
        return (match[1] or match[2]) if match else None
    raise refuse(f"{where} has the unknown size {str(value)[:80]}")


def _ranges(values: JsonObject) -> Mapping[str, tuple[int, int]]:
    ranges = {}
    for name, value in values.items():
        fields = _object(value, f"range of {name!r}", {"min_val", "max_val"})
        low, high = fields["min_val"], fields["max_val"]
        low = 0 if low is None else low
        high = _MAX_DIM if high is None else high
        if type(low) is not int or type(high) is not int:
            raise refuse(f"the range of {name!r} is not of integers")
        ranges[name] = (low, high)
    return ranges


_WEIGHT_KINDS = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}


def _inputs(
    specs: list[Json], types: Mapping[str, TensorType], groups: Mapping[str, str]
) -> tuple[list[tuple[str, TensorType]], Mapping[str, Weight]]:
    """User inputs in order, and weights by the name of the value they are in the graph."""
    inputs: list[tuple[str, TensorType]] = []
    weights: dict[str, Weight] = {}
    seen: set[str] = set()
    for spec in specs:
        kind, body = _single(spec, "an input")
        if kind == "user_input":
            value = _tensor_name(as_object(body, "an input").get("arg"), "an input")
        elif kind in _WEIGHT_KINDS:
            fields = as_object(body, "a weight")
            argument = as_object(fields.get("arg"), "a weight").get("name")
            value = as_text(argument, "a weight")
        else:
            raise refuse(f"an input of kind {kind!r} is not supported")
        if value in seen or value not in types:
            raise refuse(f"input {value!r} is listed twice or has no shape")
        seen.add(value)
        if kind == "user_input":
            inputs.append((value, types[value]))
        else:
            name = as_text(fields.get(_WEIGHT_KINDS[kind]), f"name of {value!r}")
            weights[value] = _weight(name, types[value], groups)
    if {weight.name for weight in weights.values()} != groups.keys():
        raise refuse("weight_groups does not name exactly the weights of the signature")
    return inputs, weights


def _weight(name: str, type_: TensorType, groups: Mapping[str, str]) -> Weight:
    if name not in groups:
        raise refuse(f"weight {name!r} is in no group")
    shape = tuple(dim for dim in type_.shape if isinstance(dim, int))
    if len(shape) != len(type_.shape):
        raise refuse(f"weight {name!r} has a dynamic shape")
    return Weight(name=name, group=groups[name], shape=shape, dtype=type_.dtype)


def _outputs(specs: list[Json]) -> list[str]:
    names = []
    for spec in specs:
        kind, body = _single(spec, "an output")
        if kind != "user_output":
            raise refuse(f"an output of kind {kind!r} is not supported: a graph changes no state")
        names.append(_tensor_name(as_object(body, "an output").get("arg"), "an output"))
    if not names:
        raise refuse("it has no output")
    return names


def _nodes(values: list[Json], defined: set[str]) -> tuple[Node, ...]:
    if len(values) > MAX_NODES:
        raise refuse(f"{len(values)} nodes, at most {MAX_NODES} are read")
    nodes = []
    for value in values:
        node = read_node(value)
        for argument in node.arguments:
            for name in _references(argument.value):
                if name not in defined:
                    raise refuse(f"{node.target} reads {name!r} before it is computed")
        for name in node.results:
            if name in defined:
                raise refuse(f"{name!r} is computed twice")
            defined.add(name)
        nodes.append(node)
    return tuple(nodes)


def _references(value: Value) -> list[str]:
    items: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    return [item.name for item in items if isinstance(item, Ref)]


def _single(value: Json, where: str) -> tuple[str, Json]:
    """Kind and body of a tagged union."""
    fields = as_object(value, where)
    if len(fields) != 1:
        raise refuse(f"{where} must have one kind, got {sorted(fields)}")
    return next(iter(fields.items()))


def _tensor_name(value: Json, where: str) -> str:
    kind, body = _single(value, where)
    if kind != "as_tensor":
        raise refuse(f"{where} is {kind!r}; only tensors go in and out of a graph")
    return as_text(as_object(body, where).get("name"), where)
