"""Reduces the JSON of a saved program to what running it needs.

Dropped: source locations and module stacks of the exporter's machine, guards (Python code that the
loader would have to execute), call signatures, checks, operators that do nothing at inference, and
nodes whose results nobody reads. What stays is in torch's own schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tersor.models.graph_operators import ASSERTIONS, IDENTITIES

Json = Any  # trusted: it was written by torch in this process
_WEIGHT_NAMES = ("parameter_name", "buffer_name", "tensor_constant_name")


def rewrite(saved: Json, tied: Mapping[str, str]) -> Json:
    """The reduced JSON, without `weight_groups`.

    Args:
        saved: `models/model.json` of a saved program.
        tied: names of weights that are another weight's bytes -> that weight's name.
    """
    module = saved["graph_module"]
    graph, signature = module["graph"], module["signature"]
    weights = {
        name: body["arg"]["name"]
        for body in (next(iter(spec.values())) for spec in signature["input_specs"])
        for key, name in body.items()
        if key in _WEIGHT_NAMES
    }
    renamed = {weights[name]: weights[kept] for name, kept in tied.items() if name in weights}
    nodes = _without_identities(graph["nodes"], renamed)
    for spec in signature["output_specs"]:
        _rename(spec, renamed)
    outputs = [_rename(output, renamed) for output in graph["outputs"]]
    nodes = _needed(nodes, {name for output in outputs for name in names_in(output)})
    read = {name for node in nodes for name in operands(node)}
    read.update(name for output in outputs for name in names_in(output))
    specs = [spec for spec in signature["input_specs"] if _stays(spec, read)]
    inputs = [{"as_tensor": {"name": _value_name(spec)}} for spec in specs]
    typed = {name for value in (*inputs, *outputs) for name in names_in(value)}
    return {
        "schema_version": saved["schema_version"],
        "torch_version": saved["torch_version"],
        "range_constraints": saved["range_constraints"],
        "graph_module": {
            "graph": {
                "inputs": inputs,
                "outputs": outputs,
                "nodes": nodes,
                "tensor_values": {
                    name: {key: type_[key] for key in ("dtype", "sizes")}
                    for name, type_ in graph["tensor_values"].items()
                    if name in typed
                },
            },
            "signature": {"input_specs": specs, "output_specs": signature["output_specs"]},
        },
    }


def weight_names(core: Json) -> dict[str, str]:
    """Value name in the graph -> name of the weight, of a reduced JSON."""
    names = {}
    for spec in core["graph_module"]["signature"]["input_specs"]:
        body = next(iter(spec.values()))
        for key in _WEIGHT_NAMES:
            if key in body:
                names[body["arg"]["name"]] = body[key]
    return names


def operands(node: Json) -> Iterator[str]:
    """Names of the values a node reads, in order."""
    for operand in node["inputs"]:
        yield from names_in(operand["arg"])


def names_in(value: Json) -> Iterator[str]:
    """Names of values anywhere inside a JSON operand or result."""
    if isinstance(value, list):
        for item in value:
            yield from names_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in {"name", "as_name"} and isinstance(item, str):
                yield item
            else:
                yield from names_in(item)


def _rename(value: Json, renamed: Mapping[str, str]) -> Json:
    """Renames values in place; returns the same object."""
    if isinstance(value, list):
        for item in value:
            _rename(item, renamed)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in {"name", "as_name"} and isinstance(item, str):
                value[key] = renamed.get(item, item)
            else:
                _rename(item, renamed)
    return value


def _without_identities(nodes: list[Json], renamed: dict[str, str]) -> list[Json]:
    kept = []
    for node in nodes:
        for operand in node["inputs"]:
            _rename(operand["arg"], renamed)
        if node["target"] in ASSERTIONS:
            continue
        if node["target"] in IDENTITIES and _does_nothing(node):
            source = next(operands(node))
            renamed[next(names_in(node["outputs"]))] = source
            continue
        kept.append({key: node[key] for key in ("target", "inputs", "outputs")})
    return kept


def _does_nothing(node: Json) -> bool:
    """Dropout in training mode stays, and is refused with a message when the graph is read."""
    train = [o["arg"].get("as_bool") for o in node["inputs"] if o["name"] == "train"]
    return not any(train)


def _needed(nodes: list[Json], wanted: set[str]) -> list[Json]:
    kept = []
    for node in reversed(nodes):
        # Nodes without results act on something: they stay, and are refused when the graph is read.
        if not node["outputs"] or wanted & set(names_in(node["outputs"])):
            kept.append(node)
            wanted.update(operands(node))
    return kept[::-1]


def _stays(spec: Json, read: set[str]) -> bool:
    """Inputs of the user stay even if unread; so does what the reader must refuse."""
    kind, body = next(iter(spec.items()))
    if kind == "constant_input":
        return False  # an argument fixed at export, None for instance: part of the graph by now
    if kind in {"parameter", "buffer", "tensor_constant"}:
        return body["arg"]["name"] in read
    return True


def _value_name(spec: Json) -> str:
    name: str = next(names_in(spec))
    return name
