"""Graphs that lie, break rules or ask for what no model needs: always a typed error, never more."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_graphs import CPU, recommender, resident_groups
from torch import Tensor

from tersor.models.errors import ModelError, ProgramFailedError, UnsupportedProgramError
from tersor.models.export import GraphParts, program_from_exported
from tersor.models.graph import GraphModel
from tersor.models.graph_json import parse_graph
from tersor.models.graph_nodes import SCALAR_TYPES
from tersor.models.weights import ResidentWeights

Json = Any


@pytest.fixture(scope="module")
def parts() -> GraphParts:
    return program_from_exported(recommender()[1])


@pytest.fixture
def tree(parts: GraphParts) -> Json:
    return json.loads(parts.graph_json)


def _inputs() -> dict[str, Tensor]:
    history = torch.tensor([[1, 2, 0], [4, 0, 0]])
    return {"user": torch.tensor([1, 2]), "item": torch.tensor([3, 4]), "history": history}


def _model(parts: GraphParts, tree: Json) -> GraphModel:
    weights = ResidentWeights(resident_groups(parts))
    return GraphModel(parts.program, json.dumps(tree).encode(), weights, device=CPU)


def _node(tree: Json, operator: str) -> Json:
    nodes = tree["graph_module"]["graph"]["nodes"]
    return next(node for node in nodes if node["target"].split(".")[3:4] == [operator])


def _operand(tree: Json, operator: str, name: str) -> Json:
    return next(item for item in _node(tree, operator)["inputs"] if item["name"] == name)


def test_the_untouched_graph_runs(parts: GraphParts, tree: Json) -> None:
    assert _model(parts, tree).run(_inputs()).keys() == {"scores", "best", "which"}


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"null",
        b"[]",
        b'"graph"',
        b"\xff\xfe\x00",
        b"{" * 50,
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"schema_version": NaN}',
        b'{"schema_version": 1, "schema_version": 1}',
        b"1" * 5000,
        b"{}",
    ],
)
def test_garbage_is_refused(source: bytes) -> None:
    with pytest.raises(UnsupportedProgramError, match="this graph cannot be run"):
        parse_graph(source)


@pytest.mark.parametrize(
    "version",
    [
        {"major": 7, "minor": 3},
        {"major": 9, "minor": 0},
        {"major": 8, "minor": -1},
        {"major": "8", "minor": 1},
        {"major": 8},
        {"major": True, "minor": 1},
        {"major": 8, "minor": 1, "patch": 2},
        8,
        None,
    ],
)
def test_other_schema_versions_are_refused(tree: Json, version: Json) -> None:
    tree["schema_version"] = version
    with pytest.raises(UnsupportedProgramError, match="schema"):
        parse_graph(json.dumps(tree).encode())


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.empty.memory_format",
        "torch.ops.aten.empty_like.default",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.rand_like.default",
        "torch.ops.aten.bernoulli.default",
        "torch.ops.aten.dropout.default",
        "torch.ops.aten.item.default",
        "torch.ops.aten.nonzero.default",
        "torch.ops.aten.repeat_interleave.Tensor",
        "torch.ops.aten.relu_.default",
        "torch.ops.aten.add.out",
        "torch.ops.aten.add",
        "torch.ops.aten.add.NoSuchOverload",
        "torch.ops.aten.add.__class__",
        "torch.ops.aten.__class__.default",
        "torch.ops.aten.linear.default.__call__",
        "torch.ops.higher_order.cond",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "torch.ops.prim.device.default",
        "torch.ops.profiler._record_function_exit.default",
        "torch.ops.load_library",
        "torch.load",
        "_operator.pow",
        "_operator.lshift",
        "_operator.attrgetter",
        "_operator.call",
        "builtins.eval",
        "os.system",
        "math.factorial",
        "",
        "x" * 5000,
    ],
)
def test_operators_outside_the_list_are_refused(tree: Json, target: str) -> None:
    _node(tree, "linear")["target"] = target
    with pytest.raises(UnsupportedProgramError):
        parse_graph(json.dumps(tree).encode())


def test_in_place_operators_say_what_to_do(tree: Json) -> None:
    _node(tree, "relu")["target"] = "torch.ops.aten.relu_.default"
    with pytest.raises(UnsupportedProgramError, match="save the result of its run_decompositions"):
        parse_graph(json.dumps(tree).encode())


def test_expressions_are_never_evaluated(parts: GraphParts, tree: Json, tmp_path: Path) -> None:
    trap = tmp_path / "evaluated"
    attack = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    for type_ in tree["graph_module"]["graph"]["tensor_values"].values():
        for size in type_["sizes"]:
            if "as_expr" in size:
                size["as_expr"] = {"expr_str": attack, "hint": {"as_int": 2}}
    _model(parts, tree).run(_inputs())  # an unknown expression is a size that may be anything
    tree["guards_code"] = [attack]
    with pytest.raises(UnsupportedProgramError, match="guards_code"):
        _model(parts, tree)
    assert not trap.exists()


Change = Callable[[Json], None]


def _set(operator: str, name: str, value: Json) -> Change:
    def change(tree: Json) -> None:
        _operand(tree, operator, name)["arg"] = value

    return change


def _spec(kind: str, body: Json, specs: str = "input_specs") -> Change:
    def change(tree: Json) -> None:
        tree["graph_module"]["signature"][specs].append({kind: body})

    return change


def _do(code: Callable[[Json], object]) -> Change:
    def change(tree: Json) -> None:
        code(tree)

    return change


def _graph(tree: Json) -> Json:
    return tree["graph_module"]["graph"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("linear", "input", {"as_graph": {"name": "g"}}), "'as_graph', which is not"),
        (_set("linear", "input", {"as_custom_obj": {"name": "o"}}), "'as_custom_obj'"),
        (_set("linear", "input", {"as_operator": "torch.load"}), "'as_operator'"),
        (_set("linear", "input", {"as_tensor": {"name": "nobody"}}), "reads 'nobody' before"),
        (_set("linear", "input", {"as_tensor": "x"}), "must be an object"),
        (_set("linear", "input", {"as_tensor": {"name": 3}}), "must be a string"),
        (_set("linear", "input", {"as_tensor": {"name": "a"}, "as_int": 1}), "must have one kind"),
        (_set("linear", "input", {}), "must have one kind"),
        (_set("linear", "input", None), "must be an object"),
        (_set("cat", "dim", {"as_int": 1 << 63}), "64-bit integer"),
        (_set("cat", "dim", {"as_int": True}), "64-bit integer"),
        (_set("cat", "dim", {"as_int": 1.0}), "64-bit integer"),
        (_set("cat", "dim", {"as_float": "Inf"}), "must be a number"),
        (_set("cat", "tensors", {"as_tensors": {"name": "x"}}), "must be an array"),
        (_set("_to_copy", "dtype", {"as_scalar_type": 999}), "unknown dtype 999"),
        (_set("_to_copy", "dtype", {"as_layout": 1}), "unknown layout 1"),
        (_do(lambda t: _node(t, "linear")["inputs"].append(
            {"name": "out", "arg": {"as_none": True}})), "has no operand out"),
        (_do(lambda t: _node(t, "linear")["inputs"].pop(0)), "lacks its operand 'input'"),
        (_do(lambda t: _node(t, "cat")["inputs"].append(_node(t, "cat")["inputs"][0])), "twice"),
        (_do(lambda t: _node(t, "linear").update(surprise=1)), "a node has the fields"),
        (_do(lambda t: _node(t, "max").update(outputs=[])), "has no result"),
        (_do(lambda t: _node(t, "max").update(outputs=_node(t, "max")["outputs"][:1])),
         "returns 2 results, not the node's 1"),
        (_do(lambda t: _node(t, "linear").update(outputs=_node(t, "cat")["outputs"])),
         "computed twice"),
        (_do(lambda t: _graph(t)["nodes"].reverse()), "before it is computed"),
        (_do(lambda t: _graph(t)["nodes"].clear()), "is computed by no node"),
        (_do(lambda t: _graph(t)["outputs"].pop()), "outputs of the graph are not those"),
        (_do(lambda t: _graph(t)["inputs"].pop()), "inputs of the graph are not those"),
        (_do(lambda t: _graph(t)["tensor_values"].pop("user")), "'user' is listed twice or has no"),
        (_do(lambda t: _graph(t).update(subgraphs={})), "graph has the fields"),
        (_do(lambda t: t["weight_groups"].popitem()), "is in no group"),
        (_do(lambda t: t["weight_groups"].update(extra="stem")), "does not name exactly"),
        (_do(lambda t: t["weight_groups"].update({"mlp.0.bias": 7})), "must be a string"),
        (_do(lambda t: t["range_constraints"].update(s={"min_val": "0", "max_val": 1})),
         "is not of integers"),
        (_spec("custom_obj", {"arg": {"name": "o", "class_fqn": "c"}}), "kind 'custom_obj'"),
        (_spec("token", {"arg": {"name": "t"}}), "kind 'token'"),
        (_spec("user_input", {"arg": {"as_int": 3}}), "only tensors go in and out"),
        (_spec("user_output", {"arg": {"as_none": True}}, "output_specs"), "only tensors go in"),
        (_spec("buffer_mutation", {}, "output_specs"), "a graph changes no state"),
    ],
)  # fmt: skip
def test_broken_rules_are_named(tree: Json, change: Change, message: str) -> None:
    change(tree)
    with pytest.raises(UnsupportedProgramError, match=message):
        parse_graph(json.dumps(tree).encode())


def _insert(tree: Json, target: str, inputs: list[Json]) -> None:
    node = {"target": target, "inputs": inputs, "outputs": [{"as_tensor": {"name": "new"}}]}
    _graph(tree)["nodes"].insert(0, node)


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        ("torch.ops.aten.zeros.default", "size", {"as_ints": [1 << 20, 1 << 20]}),
        ("torch.ops.aten.arange.default", "end", {"as_int": 1 << 40}),
        ("torch.ops.aten.full.default", "size", {"as_sym_ints": [{"as_int": 1 << 33}]}),
    ],
)
def test_literals_do_not_allocate_terabytes(
    tree: Json, target: str, name: str, value: Json
) -> None:
    inputs = [{"name": name, "arg": value}]
    if "full" in target:
        inputs.append({"name": "fill_value", "arg": {"as_int": 1}})
    _insert(tree, target, inputs)
    with pytest.raises(UnsupportedProgramError, match="elements, at most"):
        parse_graph(json.dumps(tree).encode())


def test_sizes_do_not_grow_without_bound(parts: GraphParts, tree: Json) -> None:
    nodes, last = [], "size"
    nodes.append(
        {
            "target": "torch.ops.aten.sym_size.int",
            "inputs": [
                {"name": "self", "arg": {"as_tensor": {"name": "history"}}},
                {"name": "dim", "arg": {"as_int": 1}},
            ],
            "outputs": [{"as_sym_int": {"as_name": last}}],
        }
    )
    for step in range(40):  # 3 ** 2 ** 40 would not fit this machine
        square = [{"name": n, "arg": {"as_sym_int": {"as_name": last}}} for n in "ab"]
        last = f"square_{step}"
        outputs = [{"as_sym_int": {"as_name": last}}]
        nodes.append({"target": "_operator.mul", "inputs": square, "outputs": outputs})
    _graph(tree)["nodes"][:0] = nodes
    with pytest.raises(ProgramFailedError, match="leaves 64 bits"):
        _model(parts, tree).run(_inputs())


@pytest.mark.parametrize(
    ("operator", "name", "value"),
    [
        ("cat", "dim", {"as_int": 7}),
        ("cat", "dim", {"as_string": "rows"}),
        ("clamp", "min", {"as_ints": [1, 2]}),
        ("cat", "tensors", {"as_tensors": []}),
        ("linear", "input", {"as_tensor": {"name": "user"}}),
        ("linear", "bias", {"as_tensor": {"name": "user"}}),
        ("linear", "bias", {"as_int": 3}),
        ("embedding", "indices", {"as_tensor": {"name": "p_users_weight"}}),
        ("embedding", "indices", {"as_none": True}),
    ],
)
def test_operators_that_fail_are_typed_errors(
    parts: GraphParts, tree: Json, operator: str, name: str, value: Json
) -> None:
    _operand(tree, operator, name)["arg"] = value
    with pytest.raises(ModelError) as caught:
        _model(parts, tree).run(_inputs())
    assert "\n" not in str(caught.value)


def test_a_forged_weight_shape_is_found_before_it_is_used(parts: GraphParts, tree: Json) -> None:
    _graph(tree)["tensor_values"]["p_mlp_0_weight"]["sizes"][0] = {"as_int": 1 << 40}
    with pytest.raises(ModelError, match=r"the graph needs torch.float32 \[1099511627776, 24\]"):
        _model(parts, tree).run(_inputs())
    _graph(tree)["tensor_values"]["p_mlp_0_weight"]["sizes"][0] = {"as_expr": {"expr_str": "s0"}}
    with pytest.raises(UnsupportedProgramError, match="has a dynamic shape"):
        _model(parts, tree)


def test_unknown_scalar_types_match_torch() -> None:
    from torch._export.serde.schema import ScalarType

    names = {"BYTE": "uint8", "CHAR": "int8", "SHORT": "int16", "INT": "int32", "LONG": "int64",
             "HALF": "float16", "FLOAT": "float32", "DOUBLE": "float64", "BOOL": "bool",
             "BFLOAT16": "bfloat16", "UINT16": "uint16", "FLOAT8E4M3FN": "float8_e4m3fn",
             "FLOAT8E5M2": "float8_e5m2", "COMPLEXFLOAT": "complex64"}  # fmt: skip
    for name, dtype in names.items():
        assert SCALAR_TYPES[ScalarType[name].value] is getattr(torch, dtype)


def _places(value: Json) -> Iterator[tuple[Json, Any]]:
    """Every (container, key) in a JSON tree."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item)


def _mutate(tree: Json, rng: random.Random) -> None:
    container, key = rng.choice(list(_places(tree)))
    other, other_key = rng.choice(list(_places(tree)))
    kind = rng.randrange(4)
    if kind == 0:
        container[key] = rng.choice([None, True, 0, -1, 7, 1 << 62, -0.5, "", "x", [], {}, "aten"])
    elif kind == 1:
        container[key] = copy.deepcopy(other[other_key])
    elif kind == 2:
        container.pop(key)
    elif isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(other[other_key]))
    else:
        container[rng.choice(["as_int", "as_tensor", "name", "surprise"])] = container.pop(key)


def test_random_damage_gives_a_result_or_a_typed_error(parts: GraphParts) -> None:
    rng = random.Random(11)
    outcomes = {"ran": 0, "refused": 0, "failed": 0}
    for _ in range(700):
        tree = json.loads(parts.graph_json)
        for _ in range(rng.randrange(1, 3)):
            _mutate(tree, rng)
        try:
            model = _model(parts, tree)
        except UnsupportedProgramError:
            outcomes["refused"] += 1
            continue
        try:
            model.run(_inputs())
        except ModelError:
            outcomes["failed"] += 1
        else:
            outcomes["ran"] += 1
    assert min(outcomes.values()) > 0, outcomes


def test_an_unused_group_in_the_order_is_no_contradiction(parts: GraphParts, tree: Json) -> None:
    assert "unused" in parts.program.group_order
    used = tuple(group for group in parts.program.group_order if group != "unused")
    program = replace(parts.program, group_order=used)
    weights = ResidentWeights(resident_groups(parts))
    GraphModel(program, json.dumps(tree).encode(), weights, device=CPU).run(_inputs())
